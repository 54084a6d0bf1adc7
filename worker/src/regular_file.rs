//! Files whose names come from a configuration or a message: anything may lie there. A named pipe would wait for its
//! other end for good, a device does whatever opening it does, a link leads elsewhere. So the type is looked at before
//! anything is opened, opening never waits, and reading has an end.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::{O_NOCTTY, O_NOFOLLOW, O_NONBLOCK};

/// What is made of a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// It stands for the file that it leads to.
    Followed,
    /// It is no regular file.
    Refused,
}

/// Opens a regular file for reading; links are followed.
///
/// # Errors
/// As `open(2)`, and when it is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    open_as(path, OpenOptions::new().read(true), Links::Followed)
}

/// Opens a regular file as `options` say, which may make it.
///
/// # Errors
/// As [`open`].
pub fn open_as(path: &Path, options: &mut OpenOptions, links: Links) -> io::Result<File> {
    let (looked, no_follow) = match links {
        Links::Followed => (std::fs::metadata(path), 0),
        Links::Refused => (std::fs::symlink_metadata(path), O_NOFOLLOW),
    };
    match looked {
        Ok(m) => is_regular(&m)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let file = options.custom_flags(O_NONBLOCK | O_NOCTTY | no_follow).open(path)?;
    // The name may stand for another thing by now.
    is_regular(&file.metadata()?)?;
    Ok(file)
}

/// The content of a regular file of at most `max` bytes.
///
/// # Errors
/// As [`open`], and when it is larger.
pub fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("larger than {max} bytes")));
    }
    Ok(bytes)
}

/// The same of a file that is UTF-8.
///
/// # Errors
/// As [`read`], and `InvalidData` for other bytes.
pub fn read_to_string(path: &Path, max: u64) -> io::Result<String> {
    String::from_utf8(read(path, max)?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
}

fn is_regular(m: &Metadata) -> io::Result<()> {
    let t = m.file_type();
    let what = match () {
        () if t.is_file() => return Ok(()),
        () if t.is_symlink() => "a symbolic link",
        () if t.is_dir() => "a folder",
        () if t.is_fifo() => "a named pipe",
        () if t.is_socket() => "a socket",
        () => "a device",
    };
    Err(io::Error::other(format!("not a regular file but {what}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;

    #[test]
    fn what_is_no_regular_file_is_named_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        std::fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::os::unix::fs::symlink("pipe", at("link-to-pipe")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let why = |name: &str| open(&at(name)).unwrap_err().to_string();
        assert!(why("pipe").contains("named pipe") && why("link-to-pipe").contains("named pipe"));
        assert!(why("socket").contains("a socket") && why(".").contains("a folder"));
        assert!(open(Path::new("/dev/zero")).unwrap_err().to_string().contains("a device"));
        assert_eq!(open(&at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(read(&at("link"), 4).unwrap(), b"text");
        assert!(read(&at("file"), 3).unwrap_err().to_string().contains("larger than 3 bytes"));
        let append = |name: &str, links| open_as(&at(name), OpenOptions::new().append(true).create(true), links);
        assert!(append("link", Links::Refused).unwrap_err().to_string().contains("symbolic link"));
        assert!(append("link", Links::Followed).is_ok() && append("new", Links::Refused).is_ok());
        assert!(append("pipe", Links::Refused).unwrap_err().to_string().contains("named pipe"));
    }
}
