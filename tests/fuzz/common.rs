//! What the targets share: heap accounting, pieces of a stream, and inputs larger than the
//! fuzzer's own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The system's allocator, counting.
struct Counting;

#[global_allocator]
static HEAP: Counting = Counting;
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn count(more: usize) {
    let held = HELD.fetch_add(more, Relaxed) + more;
    PEAK.fetch_max(held, Relaxed);
}

// SAFETY: everything is passed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // As one that has to copy: the old block and the new one for a moment.
        count(size);
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

/// Runs `f`; answers what it answers and the most bytes that it held on the heap at once,
/// beside what was there before.
pub fn peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let answer = f();
    (answer, PEAK.load(Relaxed).saturating_sub(before))
}

/// Bytes of a long input out of a short one: `0 n b` stands for `257 n` times `b`, anything
/// else for itself. At most `max` bytes.
pub fn expand(script: &[u8], max: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(script.len());
    let mut left = script;
    while let Some((first, rest)) = left.split_first() {
        left = rest;
        match (first, rest) {
            (0, [n, b, rest @ ..]) => {
                all.resize((all.len() + 257 * usize::from(*n)).min(max), *b);
                left = rest;
            }
            (b, _) => all.push(*b),
        }
        if all.len() >= max {
            all.truncate(max);
            break;
        }
    }
    all
}

/// Cuts `all` into pieces of 1 to `longest` bytes, by `seed`.
pub fn pieces(all: &[u8], seed: u8, longest: usize) -> impl Iterator<Item = &[u8]> {
    let mut state = u64::from(seed) * 2 + 1;
    let mut left = all;
    std::iter::from_fn(move || {
        // SplitMix64: any sequence will do that a seed of one byte repeats.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let n = 1 + (z >> 33) as usize % longest.max(1);
        let (piece, rest) = left.split_at(n.min(left.len()));
        left = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Takes decisions out of the fuzzer's bytes; zeroes when they are used up.
#[derive(Debug, Clone)]
pub struct Choices<'a>(pub &'a [u8]);

impl<'a> Choices<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((b, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *b
    }

    /// The next two bytes.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Up to `n` bytes.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}
