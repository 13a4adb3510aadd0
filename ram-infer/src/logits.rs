//! What the head puts out for one token: a score for each token of the vocabulary.

use std::fmt;
use std::ops::Deref;

/// The logits (V) after a token; reads as a slice.
///
/// Beside them stands the largest of every 16. The head finds it while the 16 are at hand, and who wants the
/// likeliest token alone looks through a sixteenth of the numbers.
#[derive(Clone, PartialEq)]
pub struct Logits {
    numbers: Vec<f32>,
    peaks: Vec<f32>,
}

impl Logits {
    /// These numbers.
    #[must_use]
    pub fn of(numbers: Vec<f32>) -> Self {
        let peaks = numbers.chunks(PEAK_OF).map(peak).collect();
        Self { numbers, peaks }
    }

    /// Room for so many.
    pub(crate) fn room(count: usize) -> Self {
        Self { numbers: vec![0.0; count], peaks: vec![0.0; count.div_ceil(PEAK_OF)] }
    }

    /// The room, and that for the largest of every 16.
    pub(crate) fn parts(&mut self) -> (&mut [f32], &mut [f32]) {
        (&mut self.numbers, &mut self.peaks)
    }

    /// The lowest of the tokens with the largest logit; `None` when there is none, or a number is NaN or infinite
    /// upwards.
    #[must_use]
    pub fn likeliest(&self) -> Option<u32> {
        let largest = peak(&self.peaks);
        if !largest.is_finite() {
            return None;
        }
        let near = self.peaks.iter().position(|peak| *peak >= largest)? * PEAK_OF;
        let within = self.numbers[near..].iter().position(|logit| *logit >= largest)?;
        u32::try_from(near + within).ok()
    }
}

impl Deref for Logits {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.numbers
    }
}

impl From<Logits> for Vec<f32> {
    fn from(logits: Logits) -> Self {
        logits.numbers
    }
}

impl fmt::Debug for Logits {
    /// The count alone: what is computed from words tells of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Logits({})", self.numbers.len())
    }
}

/// The largest; NaN if there is any; minus infinity of none.
pub(crate) fn peak(numbers: &[f32]) -> f32 {
    let larger = |largest: f32, x: &f32| if *x > largest || x.is_nan() { *x } else { largest };
    numbers.iter().fold(f32::NEG_INFINITY, larger)
}

/// Logits of one peak: the outputs of a tile of the head.
pub(crate) const PEAK_OF: usize = crate::kernel::ROWS;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_likeliest_is_the_first_of_the_largest(
            numbers in prop::collection::vec((-3_i8..3).prop_map(f32::from), 1..70),
        ) {
            let largest = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let first = numbers.iter().position(|logit| logit.total_cmp(&largest).is_eq());
            let found = Logits::of(numbers).likeliest();
            prop_assert_eq!(found.map(|token| token as usize), first);
        }
    }

    #[test]
    fn there_is_none_among_broken_numbers() {
        let check = |at: usize, broken| {
            let mut numbers = vec![1.0; 40];
            numbers[at] = broken;
            assert_eq!(Logits::of(numbers).likeliest(), None, "{broken} at {at}");
        };
        for at in [0, 17, 39] {
            check(at, f32::NAN);
            check(at, f32::INFINITY);
        }
        assert_eq!(Logits::of(Vec::new()).likeliest(), None);
        assert_eq!(Logits::of(vec![f32::NEG_INFINITY; 20]).likeliest(), None);
    }
}
