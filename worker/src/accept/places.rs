//! Places for clients: how `total-max-smtp-in` is shared between those whom the configuration names and strangers.
//!
//! The places of the ledger are three ranges: what is reserved for a `<source-group>` serves its sources alone; a quarter of the
//! rest serves known clients alone, where there are any; the others serve everybody. So no stranger takes the last place of
//! a known client. A stranger has besides only so many places for its address and for its network; and when places for
//! everybody get scarce, those strangers that take long to say something make room, see [`super::strangers`].

use std::ops::Range;

use ipc::limits::LEDGER_SLOTS;
use ipc::snapshot::{ArchivedSnapshot, ArchivedSourceGroup};

/// Places of a stranger's address where `max-smtp-in-per-address` says nothing: an eighth of all, and at most so many.
const PER_ADDRESS_MAX: usize = 128;
/// But so many, where half of all are not fewer.
const PER_ADDRESS_MIN: usize = 4;
/// Places are scarce when less than this part of those for everybody is free.
const SPARE_PART: usize = 8;

/// How the places are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    total: usize,
    /// For everybody.
    common: Range<usize>,
    /// For known clients.
    known: Range<usize>,
    /// For sources of groups.
    groups: Vec<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Lower case.
    pub name: String,
    /// 0 is unlimited.
    pub max: u64,
    pub reserved: Range<usize>,
}

/// Why there is no place for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// `total-max-smtp-in`
    Total,
    /// `max-smtp-in` of its `<source-group>`
    OfGroup,
    /// `max-smtp-in-per-address`
    OfAddress,
    /// `max-smtp-in-per-network`
    OfNetwork,
}

impl NoPlace {
    /// What a client of `host` is told.
    pub fn reply(self, host: &str) -> String {
        let (status, what) = match self {
            NoPlace::Total => ("4.3.2", "no free connection (total-max-smtp-in)"),
            NoPlace::OfGroup => ("4.3.2", "no free connection for your source group (max-smtp-in)"),
            NoPlace::OfAddress => ("4.7.0", "too many connections from your address (max-smtp-in-per-address)"),
            NoPlace::OfNetwork => ("4.7.0", "too many connections from your network (max-smtp-in-per-network)"),
        };
        format!("421 {status} {host} has {what}, try again later\r\n")
    }
}

impl Places {
    /// Those of a configuration with `total` places.
    pub fn of(snapshot: &ArchivedSnapshot, total: u64) -> Places {
        let reserved = |g: &ArchivedSourceGroup| {
            (g.name.as_str().to_owned(), g.max_smtp_in.to_native(), g.reserved_smtp_in.to_native())
        };
        let groups: Vec<_> = snapshot.source_groups.iter().map(reserved).collect();
        Self::shared(total, snapshot.known_networks().next().is_some(), groups)
    }

    fn shared(total: u64, names_any: bool, groups: Vec<(String, u64, u64)>) -> Places {
        let total = usize::try_from(total).unwrap_or(usize::MAX).min(LEDGER_SLOTS);
        let mut end = total;
        let mut set_apart = |n: u64| {
            let first = end.saturating_sub(usize::try_from(n).unwrap_or(usize::MAX));
            let range = first..end;
            end = first;
            range
        };
        let groups: Vec<Group> =
            groups.into_iter().map(|(name, max, n)| Group { name, max, reserved: set_apart(n) }).collect();
        let has_known = names_any || groups.iter().any(|g| !g.reserved.is_empty());
        let known = if has_known { end - end / 4..end } else { end..end };
        Places { total, common: 0..known.start, known, groups }
    }

    /// Those that clients have whom nothing is set apart for.
    pub fn common(&self) -> Range<usize> {
        self.common.clone()
    }

    pub(super) fn group(&self, name: &str) -> Option<&Group> {
        let name = (!name.is_empty()).then(|| name.to_lowercase())?;
        self.groups.iter().find(|g| g.name == name)
    }

    /// Those that known clients have besides.
    pub(super) fn known(&self) -> Range<usize> {
        self.known.clone()
    }

    /// What a stranger's address has where nothing else is said.
    pub(super) fn per_address(&self) -> u64 {
        let least = PER_ADDRESS_MIN.min(self.total.div_ceil(2));
        (self.total / 8).clamp(least, PER_ADDRESS_MAX) as u64
    }

    /// How many of those for everybody are to be given back, of `taken`.
    pub(super) fn scarce_by(&self, taken: usize) -> usize {
        let all = self.common.len();
        taken.saturating_sub(all - (all / SPARE_PART).max(1).min(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn places(total: u64, names_any: bool, reserved: &[u64]) -> Places {
        Places::shared(total, names_any, reserved.iter().enumerate().map(|(i, n)| (i.to_string(), 0, *n)).collect())
    }

    #[test]
    fn who_has_what() {
        let p = places(500, true, &[50, 30]);
        assert_eq!((p.groups[0].reserved.clone(), p.groups[1].reserved.clone()), (450..500, 420..450));
        assert_eq!((p.known.clone(), p.common()), (315..420, 0..315));
        assert_eq!(places(500, false, &[]).common(), 0..500);
        for (total, per_address) in [(1, 1), (3, 2), (20, 4), (100, 12), (500, 62), (20_000, 128)] {
            assert_eq!(places(total, true, &[]).per_address(), per_address, "{total}");
        }
        assert_eq!([437, 438, 439, 500].map(|n| places(500, false, &[]).scarce_by(n)), [0, 0, 1, 62]);
        assert_eq!([2, 3].map(|n| places(3, false, &[]).scarce_by(n)), [0, 1]);
    }

    proptest! {
        #[test]
        fn every_place_is_somebodys(total in 0u64..70_000, names_any: bool, reserved in proptest::collection::vec(0u64..40_000, 0..4)) {
            let p = places(total, names_any, &reserved);
            let groups = p.groups.iter().map(|g| g.reserved.clone());
            let mut ranges: Vec<_> = [p.common(), p.known.clone()].into_iter().chain(groups).collect();
            ranges.sort_by_key(|r| (r.start, r.end));
            let end = ranges.into_iter().fold(0, |end, r| { assert_eq!(r.start, end); r.end });
            prop_assert_eq!(end as u64, total.min(LEDGER_SLOTS as u64));
            prop_assert!(p.scarce_by(p.common.len()) <= p.common.len());
        }
    }
}
