//! Descriptors across processes: SCM_RIGHTS, sealed memfds and their mappings.
//!
//! This is the crate's one module with unsafe code: the kernel hands over raw descriptor
//! numbers and mappings, and only here are they turned into owned values.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use crate::limits::DESCRIPTORS_PER_FRAME_MAX;

/// Sends the first part of `data` with `fds`; answers how many bytes went.
///
/// # Errors
/// As `sendmsg(2)`; `EAGAIN` when the socket has no room.
pub fn send_with(fd: RawFd, data: &[u8], fds: &[RawFd]) -> nix::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<UnixAddr>(fd, &[IoSlice::new(data)], control, MsgFlags::MSG_NOSIGNAL, None)
}

/// Receives bytes into `buf`, and descriptors (close-on-exec) into `fds`.
///
/// # Errors
/// As `recvmsg(2)`; `EAGAIN` when nothing is there.
pub fn receive_with(fd: RawFd, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> nix::Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_PER_FRAME_MAX]);
    let mut iov = [IoSliceMut::new(buf)];
    let msg = recvmsg::<UnixAddr>(fd, &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for c in msg.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = c {
            // SAFETY: the kernel has just created these descriptors for this process and
            // nothing else knows their numbers.
            fds.extend(raw.into_iter().map(|r| unsafe { OwnedFd::from_raw_fd(r) }));
        }
    }
    Ok(msg.bytes)
}

/// Takes ownership of a descriptor inherited from the parent process (systemd's sockets).
///
/// # Safety contract
/// The caller names a number that the parent promised and that nothing else owns; a number
/// that is not open is refused.
pub fn adopt_inherited(number: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: borrowed only for the fcntl, which fails with EBADF if it is not open.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    fcntl(borrowed, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    // SAFETY: open, as just proven, and handed to this process by its parent.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A memfd that holds `bytes` and can never change again.
///
/// # Errors
/// As `memfd_create(2)`, `write(2)`, `fcntl(2)`.
pub fn sealed_memfd(name: &str, bytes: &[u8]) -> std::io::Result<OwnedFd> {
    use std::io::Write;
    let name = CString::new(name)?;
    let fd = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    let fd = OwnedFd::from(file);
    fcntl(
        &fd,
        FcntlArg::F_ADD_SEALS(
            SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL,
        ),
    )?;
    Ok(fd)
}

/// A zeroed memfd of fixed size for shared counters.
///
/// # Errors
/// As `memfd_create(2)`, `ftruncate(2)`, `fcntl(2)`.
pub fn shared_memfd(name: &str, bytes: usize) -> std::io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let fd = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    nix::unistd::ftruncate(&fd, bytes as i64)?;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL))?;
    Ok(fd)
}

/// A mapping of a memfd for this process's life or until dropped.
#[derive(Debug)]
pub struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory; writers go through atomics only (see `Mapping::atomics`).
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a memfd that carries the write seal, read-only.
    ///
    /// # Errors
    /// `EPERM` when the memfd is not sealed: its bytes could change under a validated view.
    pub fn read_only(fd: &OwnedFd) -> nix::Result<Mapping> {
        let seals = SealFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GET_SEALS)?);
        if !seals.contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK) {
            return Err(nix::Error::EPERM);
        }
        Self::map(fd, ProtFlags::PROT_READ)
    }

    /// Maps a file that whoever made it never changes again, only unlinks: it must not be cut
    /// while it is mapped.
    ///
    /// # Errors
    /// As `mmap(2)`; `EINVAL` for an empty file.
    pub fn immutable_file(file: &std::fs::File) -> nix::Result<Mapping> {
        Self::map(file, ProtFlags::PROT_READ)
    }

    /// Maps shared counters.
    ///
    /// # Errors
    /// `EINVAL` when the memfd is smaller than `at_least` bytes or may still shrink.
    pub fn shared(fd: &OwnedFd, at_least: usize) -> nix::Result<Mapping> {
        let seals = SealFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GET_SEALS)?);
        let m = Self::map(fd, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        if m.len < at_least || !seals.contains(SealFlag::F_SEAL_SHRINK) {
            return Err(nix::Error::EINVAL);
        }
        Ok(m)
    }

    fn map(fd: impl AsFd, prot: ProtFlags) -> nix::Result<Mapping> {
        let len = nix::sys::stat::fstat(fd.as_fd())?.st_size as usize;
        let size = NonZeroUsize::new(len).ok_or(nix::Error::EINVAL)?;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice.
        let at = unsafe { mmap(None, size, prot, MapFlags::MAP_SHARED, fd, 0)? };
        Ok(Mapping { at: at.cast(), len })
    }

    /// The bytes of a read-only mapping.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for `len` bytes until drop; the write seal, or who made the file, keeps
        // them from changing.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    /// `count` 32-bit counters from byte `offset`.
    ///
    /// # Panics
    /// When they do not lie inside the mapping: offsets are constants of [`crate::ledger`].
    pub fn atomics(&self, offset: usize, count: usize) -> &[std::sync::atomic::AtomicU32] {
        assert!(offset.is_multiple_of(4) && offset + count * 4 <= self.len);
        // SAFETY: inside the mapping, page-aligned base plus a multiple of four, and every
        // process touches these words through atomics only.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().add(offset).cast(), count) }
    }

    /// `count` 64-bit words at `offset`, a multiple of eight, of a shared mapping.
    ///
    /// # Panics
    /// As [`Mapping::atomics`].
    pub fn atomics_64(&self, offset: usize, count: usize) -> &[std::sync::atomic::AtomicU64] {
        assert!(offset.is_multiple_of(8) && offset + count * 8 <= self.len);
        // SAFETY: as in `atomics`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().add(offset).cast(), count) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` and not unmapped before.
        let _ = unsafe { munmap(self.at.cast(), self.len) };
    }
}

/// The archived snapshot inside a mapping that [`crate::snapshot::MappedSnapshot`] has
/// validated when it was made.
pub(crate) fn trusted_root<T: rkyv::Portable>(mapping: &Mapping) -> &T {
    // SAFETY: validated once over these sealed bytes, which cannot change.
    unsafe { rkyv::access_unchecked::<T>(mapping.bytes()) }
}

/// The raw numbers of descriptors, for [`send_with`].
pub fn raw(fds: &[impl AsRawFd]) -> Vec<RawFd> {
    fds.iter().map(AsRawFd::as_raw_fd).collect()
}
/// Gives heap that is free back to the system: reading a configuration of half a million lines
/// takes far more than what is left of it.
#[cfg(target_env = "gnu")]
pub fn give_back_heap() {
    // SAFETY: malloc_trim only touches what is free, and takes the allocator's locks itself.
    unsafe { nix::libc::malloc_trim(0) };
}

/// Other allocators give memory back on their own.
#[cfg(not(target_env = "gnu"))]
pub fn give_back_heap() {}

/// Lets all threads of this process share one heap: what is free at the end of those that others than the first thread
/// have is never given back, not by [`give_back_heap`] either. To be called before there is a second thread.
#[cfg(target_env = "gnu")]
pub fn share_one_heap() {
    // SAFETY: sets a parameter of the allocator; where it does not know that one nothing changes.
    unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) };
}

/// Other allocators have one.
#[cfg(not(target_env = "gnu"))]
pub fn share_one_heap() {}
