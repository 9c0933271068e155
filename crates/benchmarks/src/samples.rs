//! Measured times, and what is said of them.

use std::time::Duration;

/// Times of one thing, measured many times.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// Adds those of another.
    pub fn extend(&mut self, other: &Self) {
        self.0.extend(&other.0);
    }

    /// Each, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = Duration> {
        self.0.iter().copied()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The time that `percent` of them do not exceed; zero without samples.
    pub fn percentile(&self, percent: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index between 0 and the count"
        )]
        let index = (last as f64 * percent / 100.0).round() as usize;
        sorted.get(index).copied().unwrap_or_default()
    }

    /// The middle one.
    pub fn median(&self) -> Duration {
        self.percentile(50.0)
    }

    /// Median, p99 and the spread between the quartiles in percent of the median.
    pub fn describe(&self) -> String {
        let (median, p99) = (self.median(), self.percentile(99.0));
        let spread = (self.percentile(75.0) - self.percentile(25.0)).as_secs_f64() / median.as_secs_f64().max(1e-9);
        format!("median {median:.1?}, p99 {p99:.1?}, spread {:.0} %", spread * 100.0)
    }
}

/// Times of two things that were measured in pairs, and the middle of the pairs' ratios.
#[derive(Debug, Clone)]
pub struct Pairs {
    /// Of the first.
    pub first: Samples,
    /// Of the second.
    pub second: Samples,
    /// First to second.
    pub ratio: f64,
}

impl Pairs {
    /// Compares.
    pub fn of(pairs: &[(Duration, Duration)]) -> Self {
        let (mut first, mut second) = (Samples::default(), Samples::default());
        for (a, b) in pairs {
            first.add(*a);
            second.add(*b);
        }
        let ratio = |(a, b): &(Duration, Duration)| a.as_secs_f64() / b.as_secs_f64().max(1e-12);
        let ratio = middle(pairs.iter().map(ratio).collect());
        Self { first, second, ratio }
    }
}

/// The middle of some numbers; not a number without any.
pub fn middle(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs two things in turns, so that what else the machine does meets both alike.
///
/// # Errors
/// Theirs.
pub fn in_turns<E>(
    rounds: usize,
    mut first: impl FnMut() -> Result<Duration, E>,
    mut second: impl FnMut() -> Result<Duration, E>,
) -> Result<Pairs, E> {
    let mut pairs = Vec::new();
    for round in 0..rounds {
        // Whoever goes second finds warm caches: take turns in that, too.
        pairs.push(if round % 2 == 0 {
            let a = first()?;
            (a, second()?)
        } else {
            let b = second()?;
            (first()?, b)
        });
    }
    Ok(Pairs::of(&pairs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_samples() {
        let mut samples = Samples::default();
        assert_eq!(samples.median(), Duration::ZERO);
        for millis in [5, 1, 4, 2, 3] {
            samples.add(Duration::from_millis(millis));
        }
        let of = |percent| samples.percentile(percent).as_millis();
        assert_eq!((of(0.0), of(50.0), of(100.0)), (1, 3, 5));
    }

    #[test]
    fn one_slow_round_does_not_move_the_ratio() {
        let mut round = 0;
        let first = || {
            round += 1;
            Ok::<_, ()>(Duration::from_millis(if round == 2 { 500 } else { 20 }))
        };
        let pairs = in_turns(5, first, || Ok(Duration::from_millis(10))).unwrap();
        assert!((pairs.ratio - 2.0).abs() < 1e-9, "{pairs:?}");
    }
}
