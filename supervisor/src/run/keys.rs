//! DKIM keys and the records that receivers verify by.

use std::rc::Rc;

use worker::connect::mx::Resolver;
use worker::ports::dns_of_the_system;

use crate::state::Supervisor;

impl Supervisor {
    /// Warns of DKIM keys whose published record holds another key: receivers cannot verify what they sign.
    pub(super) async fn compare_keys(self: Rc<Self>) {
        let (keys, name_servers, udp_bytes) = {
            let compiled = self.compiled.borrow();
            let global = &compiled.snapshot.global;
            (crate::dkim::keys_of(&compiled.snapshot), global.name_servers.clone(), global.edns_udp_length)
        };
        let generation = self.generation.get();
        let compared = match Resolver::new(&name_servers, udp_bytes, &dns_of_the_system()) {
            Ok(r) => crate::dkim::compare(keys, &r).await,
            Err(e) => return tracing::warn!(error = e, "DKIM keys cannot be compared with their records"),
        };
        match compared {
            // Meanwhile there are others, which are compared as well.
            Ok(_) if self.generation.get() != generation => {}
            Ok(all) => {
                for c in all.iter().filter(|c| c.is_wrong()) {
                    tracing::warn!(
                        "the record of a DKIM key is not its own: {c}; `sluice dkim check` says what to publish"
                    );
                }
                self.dkim_keys.set((all.len(), all.iter().filter(|c| c.is_wrong()).count()));
            }
            Err(e) => tracing::warn!(error = %e, "DKIM keys cannot be compared with their records"),
        }
    }
}
