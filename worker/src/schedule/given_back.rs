//! Tokens of rates that were taken for what the receiver never heard of.

use std::net::IpAddr;

use super::ids::PathId;
use super::message::HeldContent;
use super::scheduler::Scheduler;

impl<C: HeldContent> Scheduler<C> {
    /// A transaction did not deliver its content: bytes that were counted are given back.
    pub fn not_transferred(&mut self, id: PathId, source: Option<IpAddr>, bytes: u64, now_ns: i64) {
        let Some(p) = self.paths.get_mut(id) else { return };
        let rate = p.limits().data_volume_rate;
        p.paces.volume.give_back(rate, now_ns, bytes);
        if let Some(ip) = source {
            let rate = p.rules.source_ip_max_data_volume_rate.of(ip);
            if rate.count > 0 {
                p.source(ip).paces.volume.give_back(rate, now_ns, bytes);
            }
        }
    }

    /// Recipients that were counted as attempted were not: the receiver never heard of them.
    pub fn not_attempted(&mut self, id: PathId, source: Option<IpAddr>, n: u64, now_ns: i64) {
        let Some(p) = self.paths.get_mut(id) else { return };
        let (msg, hour) = (p.limits().msg_rate, p.limits().msg_per_hour);
        p.paces.msg.give_back(msg, now_ns, n);
        p.paces.hour.give_back(hour, now_ns, n);
        if let Some(ip) = source {
            let rate = p.rules.source_ip_max_msg_rate.of(ip);
            if rate.count > 0 {
                p.source(ip).paces.msg.give_back(rate, now_ns, n);
            }
        }
    }
}
