//! What virtual MTAs and pools are called.

use ipc::snapshot::ArchivedSnapshot;

/// The virtual MTA of mail that chose none.
pub const DEFAULT_VMTA: &str = "{default}";

/// The name of the virtual MTA that a message chose, which is empty where it chose none.
pub fn name_or_default(vmta: &str) -> &str {
    if vmta.is_empty() { DEFAULT_VMTA } else { vmta }
}

/// The name of a virtual MTA or pool as the configuration spells it, if there is one.
pub fn canonical_name<'a>(snapshot: &'a ArchivedSnapshot, name: &str) -> Option<&'a str> {
    let key = name.to_lowercase();
    let at = |i: &rkyv::rend::u32_le| i.to_native() as usize;
    let vmta = snapshot.vmta_by_name.get(key.as_str()).and_then(|i| snapshot.vmtas.get(at(i))).map(|v| v.name.as_str());
    vmta.or_else(|| {
        snapshot.pool_by_name.get(key.as_str()).and_then(|i| snapshot.pools.get(at(i))).map(|p| p.name.as_str())
    })
}
