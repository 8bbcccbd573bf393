//! Both ends of flows against each other: single cases, and random worlds that check invariants I1 to I8.

mod bugs;
mod cases;
mod check;
mod deliver;
mod faults;
mod judge;
mod legs;
mod pair;
mod properties;
mod resumes;
mod silence;
mod trace;
mod words;
mod world;
