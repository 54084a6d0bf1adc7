//! Until when what is known of a path counts. Whoever adds something to a path that counts for a time adds a clock here: whether a path may be
//! forgotten, may rest and has to be noted follows from the last of the clocks, and neither [`Clocks::latest_ms`] nor
//! [`super::Path::clocks`] compiles without the new one.

/// Times behind which nothing of a path counts any more, Unix milliseconds on the queues' clock; 0 where there is nothing, `i64::MAX` where
/// only an event ends it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clocks {
    /// The path may be tried again.
    pub retry_ms: i64,
    /// Backoff, and what it left behind, ends.
    pub mode_ms: i64,
    /// Receivers spoke ill of the path.
    pub ill_ms: i64,
    /// The path's rate windows are over.
    pub windows_ms: i64,
    /// The rate windows of its source addresses are over, what the process before may have used of them included.
    pub source_windows_ms: i64,
    /// The last of its source addresses that are left out is used again.
    pub disabled_ms: i64,
    /// The last of the hosts that are left out is tried again.
    pub skipped_ms: i64,
    /// Matches of rules with a trigger in time count no more.
    pub matches_ms: i64,
}

impl Clocks {
    /// The last of them.
    pub fn latest_ms(self) -> i64 {
        let Clocks { retry_ms, mode_ms, ill_ms, windows_ms, source_windows_ms, disabled_ms, skipped_ms, matches_ms } =
            self;
        [retry_ms, mode_ms, ill_ms, windows_ms, source_windows_ms, disabled_ms, skipped_ms, matches_ms]
            .into_iter()
            .fold(0, i64::max)
    }

    /// Nothing counts any more.
    pub fn are_over(self, now_ms: i64) -> bool {
        self.latest_ms() <= now_ms
    }

    /// Those that a state of the path keeps ([`ipc::mesh::PathState`]): where it goes to another shard or process, others begin anew.
    pub fn kept(self) -> Clocks {
        Clocks { ill_ms: 0, skipped_ms: 0, matches_ms: 0, ..self }
    }

    /// Those of what a path has beside its retry clock, which it keeps while it rests.
    pub fn of_activity(self) -> Clocks {
        Clocks { retry_ms: 0, ill_ms: 0, ..self }
    }
}
