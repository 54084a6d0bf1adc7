//! What a process gives back of its memory.
//!
//! glibc's allocator keeps what is freed below the top of its heap, whatever it is worth: after a deep
//! queue that is nearly all of it. Asked to, it returns every free page.
#![allow(unsafe_code)]

/// Returns the pages of freed memory to the system. Takes a time by how much is free, 0.1 to 0.5 s a GB as measured:
/// for rare moments.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: has no precondition; it locks the allocator as every allocation does.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Allocations of so many bytes and more are pages of their own, which grow without being copied and go back to the system
/// when they are freed. Left alone, glibc's allocator puts what is as large as the largest that was ever freed among the small ones, and
/// twenty messages that are received at once leave holes of twice their size.
pub fn keep_large_apart() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator, before there is a second thread.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, 512 << 10);
    }
}
