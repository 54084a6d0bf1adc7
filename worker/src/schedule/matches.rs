//! Matches of reply rules that do something only when they match often enough within a time.

use std::collections::VecDeque;

/// When the rules with a trigger in time matched, of one path, and until when that counts: number of the rule, times of its
/// matches, and the end, Unix milliseconds.
#[derive(Debug, Default)]
pub struct Matches(Vec<(usize, VecDeque<i64>, i64)>);

impl Matches {
    /// Rule number `rule` matches now: whether it has done so `count` times within `window_ms`. Then it counts anew.
    pub fn triggers(&mut self, rule: usize, count: usize, window_ms: i64, now_ms: i64) -> bool {
        if count < 2 {
            return true;
        }
        let at = self.0.iter().position(|(i, ..)| *i == rule).unwrap_or_else(|| {
            self.0.push((rule, VecDeque::new(), 0));
            self.0.len() - 1
        });
        let times = &mut self.0[at].1;
        times.push_back(now_ms);
        // No more than what decides is kept.
        while times.len() > count || times.front().is_some_and(|t| now_ms - t > window_ms) {
            times.pop_front();
        }
        let reached = times.len() >= count;
        if reached {
            times.clear();
        }
        self.0[at].2 = if reached { 0 } else { now_ms.saturating_add(window_ms) };
        reached
    }

    /// From when on nothing of it counts any more, Unix milliseconds.
    pub fn until_ms(&self) -> i64 {
        self.0.iter().map(|(.., until_ms)| until_ms.saturating_add(1)).max().unwrap_or(0)
    }

    /// Nothing has matched.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets everything, as after a reload.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
