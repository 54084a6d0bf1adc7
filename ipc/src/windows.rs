//! Windows of delivery: the times at which mail may be delivered (`x-schedule`).

use std::fmt::Write;

/// Windows of a message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Windows {
    /// When the first of them begins, or the mail came, whichever is later; queue time, milliseconds.
    pub due_ms: i64,
    /// When the last of them ends, as it was known when the mail came; queue time, milliseconds.
    pub ends_ms: i64,
    /// Beginning and end of each, Unix seconds as the machine's clock has them. The end is no part of it.
    pub all: Vec<(i64, i64)>,
}

impl Windows {
    /// When mail may be delivered next, Unix seconds: `now_s` within a window; `None` when no window is left.
    pub fn next(&self, now_s: i64) -> Option<i64> {
        self.all.iter().filter(|(_, end)| *end > now_s).map(|(start, _)| (*start).max(now_s)).min()
    }

    /// When the last of them ends, Unix seconds.
    pub fn ends_s(&self) -> Option<i64> {
        self.all.iter().map(|(_, end)| *end).max()
    }

    /// As it is kept in an envelope.
    pub fn kept(&self) -> String {
        let mut out = format!("{} {}", self.due_ms, self.ends_ms);
        for (start, end) in &self.all {
            let _ = write!(out, " {start} {end}");
        }
        out
    }

    /// What [`Windows::kept`] says; `None` of anything else.
    pub fn of_kept(text: &str) -> Option<Windows> {
        let mut numbers = text.split(' ').map(str::parse::<i64>);
        let mut next = || numbers.next().transpose().ok();
        let (due_ms, ends_ms) = (next()??, next()??);
        let mut all = Vec::new();
        while let Some(start) = next()? {
            all.push((start, next()??));
        }
        (!all.is_empty()).then_some(Windows { due_ms, ends_ms, all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_next_window_is_the_first_that_is_not_over() {
        let w = Windows { all: vec![(100, 200), (50, 60), (150, 300)], ..Default::default() };
        for (now, next) in
            [(0, Some(50)), (50, Some(50)), (60, Some(100)), (199, Some(199)), (299, Some(299)), (300, None)]
        {
            assert_eq!(w.next(now), next, "{now}");
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_is_read_back(due_ms in any::<i64>(), ends_ms in any::<i64>(), all in proptest::collection::vec(any::<(i64, i64)>(), 1..5)) {
            let w = Windows { due_ms, ends_ms, all };
            prop_assert_eq!(Windows::of_kept(&w.kept()), Some(w));
        }

        #[test]
        fn other_text_is_none(text in "[-0-9 a]{0,30}") {
            if let Some(w) = Windows::of_kept(&text) {
                prop_assert!(text.split(' ').count() == 2 + 2 * w.all.len());
            }
        }
    }
}
