//! From a destination to an address that can be connected to, and how the connection is
//! protected.

pub mod address_health;
pub mod cache;
pub mod certificate;
pub mod cipher_list;
pub mod dane;
pub mod dns;
pub mod exchange;
pub mod loops;
pub mod mta_sts;
pub mod mx;
pub mod name_servers;
pub mod own_addresses;
pub mod protection;
pub mod secure_dns;
mod sender_names;
pub mod tls;
