//! Loads, percentiles and the tables.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

pub(crate) struct Load {
    pub(crate) objects: usize,
    pub(crate) bytes: usize,
    pub(crate) writers: usize,
    pub(crate) watchers: usize,
    pub(crate) time: Duration,
}

/// What is written: its first eight bytes are the moment it was due, so that a watcher knows how late it is.
pub(crate) fn data(bytes: usize, since: Instant, due: Instant) -> Vec<u8> {
    let mut data = vec![b'x'; bytes];
    let nanos = u64::try_from(due.duration_since(since).as_nanos()).unwrap();
    data[..8].copy_from_slice(&nanos.to_be_bytes());
    data
}

/// How late it is for `data`.
pub(crate) fn late(data: &[u8], since: Instant) -> Duration {
    let nanos = u64::from_be_bytes(data[..8].try_into().unwrap());
    since.elapsed().saturating_sub(Duration::from_nanos(nanos))
}

/// Durations as they come in.
#[derive(Clone, Default)]
pub(crate) struct Delays(Arc<Mutex<Vec<Duration>>>);

impl Delays {
    pub(crate) fn add(&self, delay: Duration) {
        self.0.lock().unwrap().push(delay);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The share of delays that are not longer, in milliseconds.
    pub(crate) fn share(&self, share: f64) -> f64 {
        let mut delays = self.0.lock().unwrap().clone();
        delays.sort();
        let at = ((delays.len() as f64 * share) as usize).min(delays.len().saturating_sub(1));
        delays
            .get(at)
            .map_or(f64::NAN, |delay| delay.as_secs_f64() * 1e3)
    }
}

/// Runs `write` in so many loops for that time; gives back writes per second.
pub(crate) async fn closed<W, F>(load: &Load, write: W) -> f64
where
    W: Fn(usize) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let began = Instant::now();
    let end = began + load.time;
    let mut loops = JoinSet::new();
    for number in 0..load.writers {
        let (write, step, objects) = (write.clone(), load.writers, load.objects);
        loops.spawn(async move {
            let mut count = 0_usize;
            while Instant::now() < end {
                write((number + count * step) % objects).await;
                count += 1;
            }
            count
        });
    }
    let written: usize = loops.join_all().await.into_iter().sum();
    written as f64 / began.elapsed().as_secs_f64()
}

/// Starts `write` so many times per second, whatever becomes of it, and notes how late each answer is. Gives back the rate that was
/// borne.
pub(crate) async fn open<W, F>(load: &Load, rate: u32, delays: &Delays, write: W) -> f64
where
    W: Fn(usize, Instant) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let total = usize::try_from(load.time.as_secs()).unwrap() * rate as usize;
    let began = Instant::now();
    // As the requests of many clients come: some in every millisecond.
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut writes = JoinSet::new();
    let mut started = 0;
    while started < total {
        tick.tick().await;
        let due = (began.elapsed().as_secs_f64() * f64::from(rate)) as usize;
        for number in started..due.min(total) {
            let at = began + Duration::from_secs_f64(number as f64 / f64::from(rate));
            let write = write(number % load.objects, at);
            let delays = delays.clone();
            writes.spawn(async move {
                write.await;
                delays.add(at.elapsed());
            });
        }
        started = due.min(total);
        while writes.try_join_next().is_some() {}
    }
    writes.join_all().await;
    total as f64 / began.elapsed().as_secs_f64()
}

/// Figures by what was measured and at what, a value for each round.
#[derive(Default)]
pub(crate) struct Figures(BTreeMap<&'static str, BTreeMap<&'static str, Vec<f64>>>);

impl Figures {
    pub(crate) fn add(&mut self, what: &'static str, whose: &'static str, value: f64) {
        self.0
            .entry(what)
            .or_default()
            .entry(whose)
            .or_default()
            .push(value);
    }

    /// Whether the median of what was measured at `keel` is between the bounds; says so if not.
    pub(crate) fn held(&self, what: &str, (least, most): (f64, f64)) -> bool {
        let value = self.0.get(what).and_then(|values| values.get("keel"));
        let value = median(value.cloned().unwrap_or_default());
        let held = (least..=most).contains(&value);
        if !held {
            println!("NOT HELD: {what} is {value:.2} and must be {least} to {most}");
        }
        held
    }

    pub(crate) fn print(&self) {
        println!("| measured | at | median | ours / it, by round |");
        println!("|---|---|---|---|");
        for (what, values) in &self.0 {
            let ours = values.get("keel");
            for (whose, rounds) in values {
                let ratios: Vec<f64> = ours
                    .into_iter()
                    .flatten()
                    .zip(rounds)
                    .map(|(ours, other)| ours / other)
                    .collect();
                let ratio = match *whose {
                    "keel" => String::new(),
                    _ => format!("{:.2}", median(ratios)),
                };
                println!(
                    "| {what} | {whose} | {:.2} | {ratio} |",
                    median(rounds.clone())
                );
            }
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
