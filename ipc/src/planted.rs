//! Faults that the simulation has to find.
//!
//! A build with the feature `simulation` carries them, each at the place where a programmer could make it, and has at most one of
//! them in force, by its name: that the simulation finds each is the proof that it would find one that nobody planted. Every other build
//! has none of them, not even their names.

/// Whether the fault of that name is in force here; always false in a build without the feature `simulation`, of which the compiler
/// then leaves out what the fault would do.
#[cfg(feature = "simulation")]
#[macro_export]
macro_rules! planted {
    ($name:literal) => {
        $crate::planted::is_in_force($name)
    };
}

/// Whether the fault of that name is in force here; always false in a build without the feature `simulation`, of which the compiler
/// then leaves out what the fault would do.
#[cfg(not(feature = "simulation"))]
#[macro_export]
macro_rules! planted {
    ($name:literal) => {
        false
    };
}

#[cfg(feature = "simulation")]
pub use simulated::{is_in_force, plant, was_reached};

#[cfg(feature = "simulation")]
mod simulated {
    use std::cell::{Cell, RefCell};

    thread_local! {
        static IN_FORCE: RefCell<String> = const { RefCell::new(String::new()) };
        static REACHED: Cell<bool> = const { Cell::new(false) };
    }

    /// Puts the fault of that name in force on this thread.
    pub fn plant(name: &str) {
        IN_FORCE.replace(name.to_owned());
        REACHED.set(false);
    }

    /// Whether code came by the place of the fault that was planted last.
    pub fn was_reached() -> bool {
        REACHED.get()
    }

    /// Whether this is the fault that was planted.
    pub fn is_in_force(name: &str) -> bool {
        let is_it = IN_FORCE.with_borrow(|planted| planted == name);
        if is_it {
            REACHED.set(true);
        }
        is_it
    }
}
