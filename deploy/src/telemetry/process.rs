//! The process itself as metrics: memory, open files, CPU time, start time, under the names that dashboards expect; and
//! the tasks of its runtimes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::runtime::Handle;

/// Ticks per second of the CPU times in `/proc/self/stat`: 100 on every architecture that Rust has std for on Linux.
const USER_HZ: f64 = 100.0;

/// The runtimes whose tasks are counted. Clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Runtimes(Arc<Mutex<Vec<(&'static str, Handle)>>>);

impl Runtimes {
    /// Counts the tasks of `runtime` under `name` from now on, instead of those that had the name before.
    pub fn count(&self, name: &'static str, runtime: Handle) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(other, _)| *other != name);
        all.push((name, runtime));
    }

    fn alive(&self) -> Vec<(&'static str, usize)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|(name, runtime)| (*name, runtime.metrics().num_alive_tasks()))
            .collect()
    }
}

/// Reads `/proc/self` at each scrape. What cannot be read is left out.
#[derive(Debug)]
pub struct ProcessCollector {
    started: f64,
    runtimes: Runtimes,
}

impl ProcessCollector {
    /// Shows this process, which counts as started now, in `registry`, with the tasks of the runtime `control` and of those
    /// that are added to the list.
    pub fn register(registry: &mut Registry, control: Handle) -> Runtimes {
        let runtimes = Runtimes::default();
        runtimes.count("control", control);
        registry.register_collector(Box::new(Self::new(runtimes.clone())));
        runtimes
    }

    fn new(runtimes: Runtimes) -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            started: since_epoch.as_secs_f64(),
            runtimes,
        }
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let start = ConstGauge::new(self.started);
        start.encode(encoder.encode_descriptor(
            "process_start_time",
            "Start of the process since the Unix epoch",
            Some(&Unit::Seconds),
            start.metric_type(),
        )?)?;
        if let Some(bytes) = resident_bytes() {
            let rss = ConstGauge::new(bytes);
            rss.encode(encoder.encode_descriptor(
                "process_resident_memory",
                "Resident memory",
                Some(&Unit::Bytes),
                rss.metric_type(),
            )?)?;
        }
        if let Some(seconds) = cpu_seconds() {
            let cpu = ConstCounter::new(seconds);
            cpu.encode(encoder.encode_descriptor(
                "process_cpu",
                "User and system CPU time",
                Some(&Unit::Seconds),
                cpu.metric_type(),
            )?)?;
        }
        if let Some(count) = open_files() {
            let files = ConstGauge::new(count);
            files.encode(encoder.encode_descriptor(
                "process_open_fds",
                "Open file descriptors",
                None,
                files.metric_type(),
            )?)?;
        }
        let mut tasks = encoder.encode_descriptor(
            "keel_runtime_tasks",
            "Tasks that have not ended",
            None,
            MetricType::Gauge,
        )?;
        for (runtime, alive) in self.runtimes.alive() {
            let alive = ConstGauge::new(i64::try_from(alive).unwrap_or(i64::MAX));
            alive.encode(tasks.encode_family(&[("runtime", runtime)])?)?;
        }
        Ok(())
    }
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command name may hold anything, so count fields behind its closing bracket: state is field 3, utime 14, stime 15.
    let (_, behind) = stat.rsplit_once(") ")?;
    let mut fields = behind.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / USER_HZ)
}

fn open_files() -> Option<i64> {
    i64::try_from(std::fs::read_dir("/proc/self/fd").ok()?.count()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[tokio::test]
    async fn a_scrape_shows_the_process() {
        let mut registry = Registry::default();
        let _runtimes = ProcessCollector::register(&mut registry, Handle::current());
        let text = scrape(&registry);
        for name in [
            "process_start_time_seconds",
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
            "process_open_fds",
        ] {
            assert!(
                text.contains(&format!("\n{name} ")) || text.starts_with(&format!("{name} ")),
                "{name} in\n{text}"
            );
        }
    }

    #[tokio::test]
    async fn tasks_are_counted_while_they_live() {
        let mut registry = Registry::default();
        let runtimes = ProcessCollector::register(&mut registry, Handle::current());
        // The next one of a name takes the place of the one before.
        runtimes.count("data", Handle::current());
        runtimes.count("data", Handle::current());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..3 {
            tasks.spawn(std::future::pending::<()>());
        }
        let lines = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| line.starts_with("keel_runtime"));
            lines.map(str::to_owned).collect()
        };
        let line = |name, count| format!("keel_runtime_tasks{{runtime=\"{name}\"}} {count}");
        assert_eq!(
            lines(&scrape(&registry)),
            [line("control", 3), line("data", 3)]
        );
        tasks.shutdown().await;
        assert_eq!(
            lines(&scrape(&registry)),
            [line("control", 0), line("data", 0)]
        );
    }
}
