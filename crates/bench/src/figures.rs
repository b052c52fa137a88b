//! Samples, medians and ratios, and the page they make.

use std::time::Instant;

use anyhow::Result;
use lab::command::sh;

/// One thing measured on both engines; a peer that cannot serve has the reason instead.
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    pub skep: Vec<f64>,
    pub dockerd: Result<Vec<f64>, String>,
}

#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    /// Benchmarks that did not get to their end, and why.
    failed: Vec<(String, String)>,
}

impl Report {
    pub fn add(
        &mut self,
        what: &str,
        unit: &'static str,
        skep: Vec<f64>,
        dockerd: Result<Vec<f64>, String>,
    ) {
        let row = Row { what: what.to_owned(), unit, skep, dockerd };
        eprintln!("{}", line(&row));
        self.rows.push(row);
    }

    /// Notes that a benchmark ended early; the figures that it gave before stay.
    pub fn fail(&mut self, part: &str, error: &anyhow::Error) {
        let reason = format!("{error:#}").lines().next().unwrap_or_default().to_owned();
        self.failed.push((part.to_owned(), reason));
    }

    pub fn failures(&self) -> usize {
        self.failed.len()
    }

    /// The page: date, kernel, medians, spread and ratios.
    pub fn markdown(&self) -> Result<String> {
        let mut text = String::from(
            "# Benchmarks\n\nWritten by `cargo xtask bench`. Each figure is the median of samples taken in turns on both engines,\nwith the smallest and largest in brackets; only the ratio within one run counts.\n\n",
        );
        text.push_str(&format!(
            "Date: {}. Kernel: {}. Cores: {}.\n\n",
            sh("date -u +%F")?,
            sh("uname -r")?,
            sh("nproc")?
        ));
        text.push_str("| what | unit | skep | Docker Engine | ratio |\n|---|---|---:|---:|---:|\n");
        for row in &self.rows {
            text.push_str(&line(row));
            text.push('\n');
        }
        for (part, reason) in &self.failed {
            text.push_str(&format!(
                "\n**The benchmark {part} did not get to its end** in this run: {reason}\n"
            ));
        }
        Ok(text)
    }
}

fn line(row: &Row) -> String {
    let (dockerd, ratio) = match &row.dockerd {
        Ok(samples) => (spread(samples), format!("{:.2}", median(&row.skep) / median(samples))),
        Err(reason) => (reason.clone(), "-".to_owned()),
    };
    format!("| {} | {} | {} | {dockerd} | {ratio} |", row.what, row.unit, spread(&row.skep))
}

fn spread(samples: &[f64]) -> String {
    let low = samples.iter().copied().fold(f64::INFINITY, f64::min);
    let high = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{:.2} [{low:.2}, {high:.2}]", median(samples))
}

/// NaN without samples.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// The sample that this part of all does not exceed; NaN without samples.
pub fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Seconds that a step took.
pub fn seconds<T>(step: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    step()?;
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_quantile_is_one_of_the_samples() {
        let samples: Vec<f64> = (1..=50).rev().map(f64::from).collect();
        assert_eq!((quantile(&samples, 0.5), quantile(&samples, 0.99)), (25.0, 50.0));
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_benchmark_that_fails_is_told_beside_the_figures_of_the_others() -> Result<()> {
        let mut report = Report::default();
        report.add("x", "s", vec![2.0], Ok(vec![4.0]));
        report.fail("swarm", &anyhow::anyhow!("no host\nmore"));
        let page = report.markdown()?;
        assert!(
            page.contains("| x | s | 2.00 [2.00, 2.00] | 4.00 [4.00, 4.00] | 0.50 |"),
            "{page}"
        );
        assert!(
            page.contains("**The benchmark swarm did not get to its end** in this run: no host\n")
        );
        assert_eq!(report.failures(), 1);
        Ok(())
    }

    #[test]
    fn a_peer_that_cannot_serve_says_so_instead_of_a_figure() {
        let row =
            Row { what: "x".into(), unit: "s", skep: vec![1.0], dockerd: Err("needs IPVS".into()) };
        assert_eq!(line(&row), "| x | s | 1.00 [1.00, 1.00] | needs IPVS | - |");
    }
}
