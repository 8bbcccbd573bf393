//! The three commands that build a lab: `ip`, `nft`, and any other run inside a namespace.

use std::time::Duration;

use crate::process::Program;

/// What one of these commands may take. They answer within milliseconds; a busy machine gets much more.
const BOUND: Duration = Duration::from_secs(20);

pub(super) fn ip(args: &[&str]) -> anyhow::Result<()> {
    Program::new("ip").args(args).ok(BOUND).map(drop)
}

/// Runs a ruleset in a namespace.
pub(super) fn nft(netns: &str, rules: &str) -> anyhow::Result<()> {
    inside(netns, "nft")
        .args(["-f", "-"])
        .input(rules)
        .ok(BOUND)
        .map(drop)
}

pub(super) fn sysctl(netns: &str, setting: &str) -> anyhow::Result<()> {
    inside(netns, "sysctl")
        .args(["-qw", setting])
        .ok(BOUND)
        .map(drop)
}

/// Forgets all NAT mappings, as a home router that restarts.
pub(super) fn forget_flows(netns: &str) -> anyhow::Result<()> {
    inside(netns, "conntrack").arg("-F").ok(BOUND).map(drop)
}

fn inside(netns: &str, program: &str) -> Program {
    Program::new(program).behind(["ip", "netns", "exec", netns])
}
