//! How does the delay of the exchange between nodes affect availability?
//!
//! Three nodes in this process: providers of one service at `a` and `c`, a consumer at `b`. What `b` knows of the others comes
//! through a courier that is late by a chosen time, in the place of its Syncer; the first row is the Syncer itself. While an
//! application connects twenty times a second, providers move from `a` to `c` and back.

mod application;
mod courier;
mod stage;

use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use keel::settings::Span;

use application::Seen;
use stage::{Churn, Stage};

/// Measures how a delay of the exchange between nodes affects who connects to a service whose providers come and go.
#[derive(Debug, Parser)]
#[command(after_help = "Example:\n  tests/delay --delays 0s,5s --rounds 2")]
struct Arguments {
    /// How late a change of one node is known at another
    #[arg(long, value_delimiter = ',', default_value = "0s,1s,5s,15s")]
    delays: Vec<Span>,
    /// Moves of a provider for each row
    #[arg(long, default_value_t = 2)]
    rounds: u32,
    /// How long a connection waits for a provider
    #[arg(long, default_value = "10s")]
    connect_timeout: Span,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure(&arguments))
}

#[allow(
    clippy::print_stdout,
    reason = "the table is the product of this program"
)]
async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    println!(
        "connect timeout {}; {} moves for each row; a connection is 64 bytes there and back",
        arguments.connect_timeout, arguments.rounds
    );
    println!(
        "{:<44} {:>8} {:>11} {:>8} {:>9} {:>9} {:>9} {:>12}",
        "providers", "delay", "connections", "failed", "p50 ms", "p99 ms", "max ms", "unserved s"
    );
    let delays = arguments.delays.iter().map(|span| Some(span.0));
    let delays: Vec<Option<Duration>> = std::iter::once(None).chain(delays).collect();
    for churn in [Churn::OnlyOneMoves, Churn::OneOfTwoMoves] {
        for delay in &delays {
            let what = delay.map_or("Syncer".to_owned(), |delay| Span(delay).to_string());
            let seen = Box::pin(row(arguments, churn, *delay))
                .await
                .with_context(|| format!("{}, {what}", churn.name()))?;
            let times = seen.times();
            println!(
                "{:<44} {what:>8} {:>11} {:>8} {:>9.1} {:>9.1} {:>9.1} {:>12.1}",
                churn.name(),
                seen.all(),
                seen.failed(),
                times.at(0.5),
                times.at(0.99),
                times.at(1.0),
                seen.unserved(arguments.rounds).as_secs_f64(),
            );
            if let Some(failure) = seen.first_failure() {
                println!("  the first one that failed: {failure}");
            }
        }
    }
    Ok(())
}

async fn row(arguments: &Arguments, churn: Churn, delay: Option<Duration>) -> anyhow::Result<Seen> {
    let mut stage = Box::pin(Stage::start(churn, delay, arguments.connect_timeout)).await?;
    // What is late must be known before the next change.
    let pause = delay.unwrap_or_default() + Duration::from_secs(4);
    let application = application::connect_on(stage.service());
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..arguments.rounds {
        stage.move_one().await?;
        tokio::time::sleep(pause).await;
    }
    let seen = application.stop().await;
    stage.stop().await?;
    Ok(seen)
}
