//! Values that lie on disk as archives, and are read by builds that come later: one byte behind the archive tells its version.
//!
//! The length of an archive is a multiple of its alignment, which is at least four. A value whose length is one more than a multiple of
//! four therefore ends with its version; one without that byte was written before there was any, and is of version 1.
//!
//! Records of a spool's log have a version in their headers, and so has the index: what lies in those needs no byte of its own.
//!
//! Whoever changes the layout of a type that is [`Stored`] raises its [`Stored::VERSION`], keeps the type as it was for
//! [`Stored::of_older`], and adds the new layout to its test, in which all layouts that there were remain.

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Error;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;

/// The version of values that end without one.
const UNMARKED: u8 = 1;
/// What the length of every archive is a multiple of.
const ALIGNMENT: usize = 4;

/// Why a stored value cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// Its version is none that this build reads.
    #[error("{what}: expected version {newest} or older, found {found}: a newer version of Sluice wrote it")]
    Version {
        /// What the value is.
        what: &'static str,
        /// Its version.
        found: u8,
        /// The version that this build writes.
        newest: u8,
    },
    /// Neither an archive nor one with a version behind it.
    #[error("{what}: {length} bytes are no length that it can have")]
    Length {
        /// What the value is.
        what: &'static str,
        /// Its length.
        length: usize,
    },
    /// The archive does not validate.
    #[error("{what} of version {version} is not valid: {reason}")]
    Archive {
        /// What the value is.
        what: &'static str,
        /// Its version.
        version: u8,
        /// What validation says.
        reason: String,
    },
}

impl StoredError {
    /// The value is whole, and a newer build reads it: it stays where it is.
    pub fn is_of_newer_build(&self) -> bool {
        matches!(self, StoredError::Version { .. })
    }
}

/// A type whose values outlive the build that wrote them.
pub trait Stored: Sized {
    /// What errors call a value of it.
    const WHAT: &'static str;
    /// Version of its layout: raised by one with each change.
    const VERSION: u8;

    /// Reads an archive of an older version, by [`unarchived`] of the type as it was then; `None` where there was no such version.
    fn of_older(_version: u8, _archive: &[u8]) -> Option<Result<Self, StoredError>> {
        None
    }
}

/// A value as it is stored.
pub fn bytes<T>(value: &T) -> Vec<u8>
where
    T: Stored + for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Error>>,
{
    const { assert!(align_of::<T::Archived>() >= ALIGNMENT, "the version could not be told from the archive") };
    let archive = crate::frame::archive(value);
    let mut all = Vec::with_capacity(archive.len() + 1);
    all.extend_from_slice(&archive);
    all.push(T::VERSION);
    all
}

/// Reads what [`bytes`] of this build or of an older one made.
///
/// # Errors
/// See [`StoredError`].
pub fn read<T>(bytes: &[u8]) -> Result<T, StoredError>
where
    T: Stored + rkyv::Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, Error>> + rkyv::Deserialize<T, HighDeserializer<Error>>,
{
    let (archive, version) = match (bytes.len() % ALIGNMENT, bytes.split_last()) {
        (0, _) => (bytes, UNMARKED),
        (1, Some((version, archive))) => (archive, *version),
        _ => return Err(StoredError::Length { what: T::WHAT, length: bytes.len() }),
    };
    if version == T::VERSION {
        return unarchived::<T>(T::WHAT, version, archive);
    }
    let older = T::of_older(version, archive).filter(|_| version < T::VERSION);
    older.unwrap_or(Err(StoredError::Version { what: T::WHAT, found: version, newest: T::VERSION }))
}

/// Reads the archive of a stored value of a certain version, wherever it lies in memory.
///
/// # Errors
/// [`StoredError::Archive`] when it is not valid.
pub fn unarchived<T>(what: &'static str, version: u8, archive: &[u8]) -> Result<T, StoredError>
where
    T: rkyv::Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, Error>> + rkyv::Deserialize<T, HighDeserializer<Error>>,
{
    let mut aligned = AlignedVec::<16>::with_capacity(archive.len());
    aligned.extend_from_slice(archive);
    rkyv::from_bytes::<T, Error>(&aligned).map_err(|e| StoredError::Archive { what, version, reason: e.to_string() })
}

/// For tests: a value is archived as these hexadecimal digits say, which were written down when spools with such values came
/// into use. Of a type that has versions all are given, the oldest first: each is read as that value, and the newest is what is written.
#[macro_export]
macro_rules! assert_layout {
    ($value:expr, record: $layout:literal) => {{
        let known: String = $layout.split_whitespace().collect();
        let now: String = $crate::frame::archive(&$value).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            now, known,
            "what records hold lies in another way than in spools that are in use: raise FORMAT_VERSION and read both"
        );
    }};
    ($value:expr, $($version:literal: $layout:literal),+) => {{
        fn version_of<T: $crate::stored::Stored>(_: &T) -> u8 {
            T::VERSION
        }
        let value = $value;
        let newest = [$(($version, $layout.split_whitespace().collect::<String>())),+];
        let of_digits = |digits: &str| -> Vec<u8> {
            (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).expect("two digits")).collect()
        };
        for (version, digits) in &newest {
            let mut bytes = of_digits(digits);
            if *version == 1 {
                assert_eq!($crate::stored::read(&bytes).ok().as_ref(), Some(&value), "a value without a version is read");
            }
            bytes.push(*version);
            assert_eq!($crate::stored::read(&bytes).ok().as_ref(), Some(&value), "a value of version {version} is read");
        }
        let now: String = $crate::frame::archive(&value).iter().map(|b| format!("{b:02x}")).collect();
        let (version, digits) = &newest[newest.len() - 1];
        assert_eq!(
            (version_of(&value), &now),
            (*version, digits),
            "this value lies in another way than in spools that are in use: raise `VERSION` of its type, read what was \
             before in `of_older`, and add the new digits to this test behind the others"
        );
    }};
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rkyv::{Archive, Deserialize, Serialize};

    /// As it was at first.
    #[derive(Debug, PartialEq, Archive, Serialize, Deserialize)]
    struct First {
        name: String,
    }

    impl Stored for First {
        const WHAT: &'static str = "a thing";
        const VERSION: u8 = 1;
    }

    /// As it is since it has a size.
    #[derive(Debug, PartialEq, Archive, Serialize, Deserialize)]
    struct Second {
        size: u64,
        name: String,
    }

    impl Stored for Second {
        const WHAT: &'static str = "a thing";
        const VERSION: u8 = 2;

        fn of_older(version: u8, archive: &[u8]) -> Option<Result<Self, StoredError>> {
            let of_first = |f: First| Second { size: 7, name: f.name };
            (version == 1).then(|| unarchived::<First>(Self::WHAT, version, archive).map(of_first))
        }
    }

    fn first() -> First {
        First { name: "a name that lies out of line".into() }
    }

    #[test]
    fn older_versions_are_read_with_and_without_their_byte() {
        let of_first = Second { size: 7, name: first().name };
        assert_eq!(read::<Second>(&crate::frame::archive(&first())).unwrap(), of_first);
        assert_eq!(read::<Second>(&bytes(&first())).unwrap(), of_first);
        assert_eq!(read::<Second>(&bytes(&Second { size: 8, ..first().into() })).unwrap().size, 8);
    }

    impl From<First> for Second {
        fn from(f: First) -> Second {
            Second { size: 0, name: f.name }
        }
    }

    #[test]
    fn an_unknown_version_and_damage_are_told_apart() {
        let of_newer = read::<First>(&bytes(&Second { size: 8, ..first().into() })).unwrap_err();
        assert!(of_newer.is_of_newer_build());
        assert_eq!(
            of_newer.to_string(),
            "a thing: expected version 1 or older, found 2: a newer version of Sluice wrote it"
        );
        let mut damaged = bytes(&first());
        let name = damaged.len() - 2;
        damaged[name] = 0;
        let e = read::<First>(&damaged).unwrap_err();
        assert!(!e.is_of_newer_build() && e.to_string().starts_with("a thing of version 1 is not valid: "), "{e}");
        assert_eq!(read::<First>(&[0; 6]).unwrap_err().to_string(), "a thing: 6 bytes are no length that it can have");
        for some in 0..damaged.len() {
            let _any = read::<First>(&damaged[..some]);
        }
        assert!(
            read::<Second>(&[&crate::frame::archive(&first())[..], &[0]].concat()).unwrap_err().is_of_newer_build()
        );
    }

    #[test]
    fn where_a_value_lies_in_memory_does_not_matter() {
        let stored = bytes(&first());
        for before in 0..16 {
            let shifted = [&vec![0; before][..], &stored[..]].concat();
            assert_eq!(read::<First>(&shifted[before..]).unwrap(), first());
        }
    }
}
