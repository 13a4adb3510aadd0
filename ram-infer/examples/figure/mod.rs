//! Two things measured in turn, and their ratio.

#![expect(clippy::print_stdout, reason = "an example speaks to the terminal")]

/// What was measured.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Of each round, the first and the second; one round at least.
    pub(crate) rounds: Vec<[f64; 2]>,
    /// What the ratio should not pass.
    pub(crate) bar: Option<f64>,
    /// What else is known.
    pub(crate) more: Vec<(&'static str, f64)>,
}

impl Figure {
    /// The second over the first: the median of the rounds.
    pub(crate) fn ratio(&self) -> f64 {
        median(self.ratios())
    }

    pub(crate) fn print(&self) {
        let Self { name, unit, .. } = self;
        print!("{name:<10} {:>9.2} -> {:>8.2} {unit:<9}", self.side(0), self.side(1));
        let (least, most) = (self.ratios().fold(f64::MAX, f64::min), self.ratios().fold(f64::MIN, f64::max));
        print!("x {:.4} ({least:.4}-{most:.4})", self.ratio());
        for (name, value) in &self.more {
            print!(", {name} {value:.2}");
        }
        match self.bar {
            Some(bar) if self.ratio() <= bar => println!(", within {bar}"),
            Some(bar) => println!(", OVER {bar}"),
            None => println!(),
        }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        let more = self.more.iter().map(|(name, value)| ((*name).to_owned(), (*value).into()));
        serde_json::json!({
            "name": self.name, "unit": self.unit, "first": self.side(0), "second": self.side(1),
            "ratio": self.ratio(), "bar": self.bar, "rounds": self.rounds,
            "more": more.collect::<serde_json::Map<_, _>>(),
        })
    }

    fn ratios(&self) -> impl Iterator<Item = f64> {
        self.rounds.iter().map(|[first, second]| second / first)
    }

    /// The median of one side alone.
    fn side(&self, side: usize) -> f64 {
        median(self.rounds.iter().map(|round| round[side]))
    }
}

/// The value in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    f64::midpoint(values[(values.len() - 1) / 2], values[upper])
}
