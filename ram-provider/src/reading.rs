//! How fast this machine reads its memory: what bounds the writing of tokens, each of which reads all weights once.
//!
//! Measured, not looked up: every thread that the engine would have sums its part of a buffer, over and over, for
//! [`MEASURED_FOR`]. The buffer is larger than the caches of most processors, so that it is the memory that is read;
//! where a cache is larger still, the number is that of the cache, and too good. Unpacking weights and multiplying is
//! not in it: a node reads its layers no faster than this, and with fast kernels not much slower. Other programs that
//! run meanwhile make it smaller, as they would the writing of tokens.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use ram_core::units::ByteRate;

/// How long is read: some thousand times as long as a thread takes to be woken.
const MEASURED_FOR: Duration = Duration::from_millis(40);
/// Numbers of the buffer: 96 MiB.
const NUMBERS: usize = 12 << 20;
/// Numbers of the smallest page of memory that systems have.
const PAGE: usize = 512;
/// Numbers between two looks at the clock: 64 KiB, which take microseconds.
const AT_ONCE: usize = 8 << 10;

/// Measures it. Takes a tenth of a second and all processors: not for an async task.
pub(crate) fn rate() -> ByteRate {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut buffer = vec![0_u64; NUMBERS];
    buffer.iter_mut().step_by(PAGE).for_each(|number| *number = 1); // a page never written to is no memory of its own
    let parts: Vec<&[u64]> = buffer.chunks(NUMBERS.div_ceil(threads)).collect();
    let start = &Barrier::new(parts.len());
    let rates = thread::scope(|scope| {
        let readers: Vec<_> = parts.into_iter().map(|part| scope.spawn(move || read(part, start))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap_or(0)).fold(0, u64::saturating_add)
    });
    ByteRate::new(rates)
}

/// Bytes a second that one thread reads of its part.
#[expect(clippy::disallowed_methods, reason = "a shell: here it is measured how long reading takes")]
fn read(part: &[u64], start: &Barrier) -> u64 {
    start.wait();
    let (began, mut bytes) = (Instant::now(), 0_u128);
    for piece in part.chunks(AT_ONCE).cycle() {
        black_box(piece.iter().fold(0_u64, |sum, number| sum.wrapping_add(*number)));
        bytes += size_of_val(piece) as u128;
        if began.elapsed() >= MEASURED_FOR {
            break;
        }
    }
    let nanos = began.elapsed().as_nanos().max(1);
    u64::try_from(bytes * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_reads_at_some_speed() {
        assert!(rate() > ByteRate::new(1_000_000), "a disk of forty years ago was faster");
    }
}
