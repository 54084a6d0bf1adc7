//! The architecture's invariants, each by name, against the built binary.
#![allow(clippy::unwrap_used, missing_docs)]

mod i1_full_disk;
mod i1_kills;
mod i1_nothing_lost;
mod i1_power_loss;
mod i2_one_outcome;
mod i3_limits_hold_at_the_receiver;
mod i4_shards_are_independent;
mod i5_reload_is_safe;
mod i6_memory_follows_work;
mod i7_beside_innocent_mail;
mod i7_hostile_input_is_contained;
mod i7_nothing_holds_the_loop;
mod i7_what_enters_is_clean;
