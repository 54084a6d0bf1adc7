//! The memory of what is being received: messages of all sessions and shards together have a budget
//! (`total-max-smtp-in-size`), fairly shared.
//!
//! What is small is not counted, and always gets in. Of the rest a client (an IPv4 address, or a network of 64 bits) has no more
//! than what is still free then; in each of several shards, an equal part of that, for its sessions are spread over them. So
//! the first client gets half of the budget, and each that comes as well leaves something for others. One message alone may have
//! more, as long as an eighth of the budget stays free.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;

use ipc::network::Network;

use super::budget::{Budget, Client};
use crate::clock;
use crate::shard::Shard;
use crate::smtp::command::Refusal;

/// Bytes of one session that are not counted.
pub const SMALL_BYTES: u64 = 64 << 10;
/// What a recipient costs beside its RCPT's text, which it has twice: the address and its domain.
pub const RECIPIENT_BYTES: u64 = 160;

/// When so much was held and nothing is, the allocator gives it back to the system.
const GIVEN_BACK_BYTES: u64 = 8 << 20;

/// What one session holds of the budget; given back when it is dropped.
pub struct MemoryShare {
    shard: Rc<Shard>,
    client: Option<Network>,
    /// As counted: 0 while it is small.
    bytes: Cell<u64>,
}

impl std::fmt::Debug for MemoryShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryShare").field("client", &self.client).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl MemoryShare {
    /// Of a client, or of a program on this machine.
    pub fn of(shard: &Rc<Shard>, client: Option<IpAddr>) -> MemoryShare {
        let client = client.map(Network::of_one_host);
        MemoryShare { shard: Rc::clone(shard), client, bytes: Cell::new(0) }
    }

    /// The session holds so many bytes from now on; false, and nothing changes, if there is no room for more.
    pub fn hold(&self, bytes: u64) -> bool {
        let bytes = if bytes > SMALL_BYTES { bytes } else { 0 };
        if bytes > self.bytes.get() && !self.has_room(bytes) {
            return false;
        }
        self.count(bytes);
        true
    }

    /// Whether there is room for a message of so many bytes now.
    pub fn has_room(&self, bytes: u64) -> bool {
        if bytes <= SMALL_BYTES {
            return true;
        }
        let (r, ledger) = (&self.shard.receiving, &self.shard.ledger);
        // This shard's own number is exact, and in the ledger in whole KiB.
        let elsewhere = ledger.receiving().saturating_sub(kib(r.bytes.get())) << 10;
        let others = (elsewhere + r.bytes.get()).saturating_sub(self.bytes.get());
        let shards = self.shard.map.borrow().shards.len().max(1) as u64;
        let of_all = self.shard.config().global.total_max_smtp_in_size;
        let own = r.clients.borrow().get(&self.client).copied().unwrap_or_default();
        let own = Client {
            bytes: own.bytes.saturating_sub(self.bytes.get()),
            messages: own.messages.saturating_sub(u64::from(self.bytes.get() > 0)),
        };
        Budget { of_all, others, shards }.has_room(bytes, own)
    }

    /// The server's processes have more of the machine's memory than they may.
    pub fn is_out_of_memory(&self) -> bool {
        let most = self.shard.config().global.max_memory_usage_percent;
        most < 100 && self.shard.ledger.memory(clock::wall_ms(clock::now_ms()) / 1000) > most * 10
    }

    /// The largest message that there is ever room for, bytes.
    pub fn largest(&self) -> u64 {
        Budget::largest(self.shard.config().global.total_max_smtp_in_size)
    }

    fn count(&self, bytes: u64) {
        let before = self.bytes.replace(bytes);
        if before == bytes {
            return;
        }
        let r = &self.shard.receiving;
        r.bytes.set((r.bytes.get() + bytes).saturating_sub(before));
        let mut clients = r.clients.borrow_mut();
        let own = clients.entry(self.client).or_default();
        own.bytes = (own.bytes + bytes).saturating_sub(before);
        own.messages = (own.messages + u64::from(bytes > 0)).saturating_sub(u64::from(before > 0));
        if own.messages == 0 {
            clients.remove(&self.client);
        }
        if r.bytes.get() == 0 && r.most.replace(0) > GIVEN_BACK_BYTES {
            self.shard.gives_memory_back_soon();
        }
        r.most.set(r.most.get().max(r.bytes.get()));
        self.shard.ledger.set_receiving(self.shard.number, kib(r.bytes.get()).min(u64::from(u32::MAX)) as u32);
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.count(0);
    }
}

/// For who has to come again.
pub fn no_room() -> Refusal {
    Refusal(452, "4.3.1", "No memory for so much at once now (total-max-smtp-in-size), try again later".into())
}

/// For what there never is room for.
pub fn too_large(largest: u64) -> Refusal {
    Refusal(
        552,
        "5.3.4",
        format!("Message is larger than {largest} bytes, all that there is room for (total-max-smtp-in-size)"),
    )
}

fn kib(bytes: u64) -> u64 {
    bytes.div_ceil(1024)
}
