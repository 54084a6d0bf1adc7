//! What rate limits count at a path and at its source addresses.

use std::net::IpAddr;

use ipc::backoff::Limits;
use ipc::rules::Rate;

use super::rate::Pace;

/// What rate limits count at one path, or at one of its source addresses.
#[derive(Debug, Default, PartialEq)]
pub struct Paces {
    /// Recipients attempted.
    pub msg: Pace,
    /// Recipients attempted in an hour.
    pub hour: Pace,
    /// Bytes delivered.
    pub volume: Pace,
    /// Connections opened.
    pub connect: Pace,
}

impl Paces {
    /// Each window with the limit that it counts for, in the order that a note of them has.
    pub fn under(&mut self, l: &Limits) -> [(&mut Pace, Rate); 4] {
        [
            (&mut self.msg, l.msg_rate),
            (&mut self.hour, l.msg_per_hour),
            (&mut self.volume, l.data_volume_rate),
            (&mut self.connect, l.connect_rate),
        ]
    }

    /// One transaction took so much that a note of windows in use would not tell of it.
    pub fn is_to_be_noted(&self, msg: Rate, hour: Rate, now_ns: i64) -> bool {
        self.msg.is_to_be_noted(msg, now_ns) || self.hour.is_to_be_noted(hour, now_ns)
    }

    /// When the last of the windows is over, Unix milliseconds.
    pub fn busy_until_ms(&self) -> i64 {
        self.msg.tat_ns.max(self.hour.tat_ns).max(self.volume.tat_ns).max(self.connect.tat_ns) / 1_000_000
    }
}

/// A source address at this destination.
#[derive(Debug)]
pub struct Source {
    /// The address.
    pub ip: IpAddr,
    /// Connections from it, those being opened included.
    pub connections: u32,
    /// Its windows.
    pub paces: Paces,
    /// Not used before this time, Unix milliseconds; `i64::MAX` until an operator enables it.
    pub disabled_until_ms: i64,
}
