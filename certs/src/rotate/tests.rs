use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{sync::Notify, time::Instant};

use super::*;
use crate::{
    fixture::Fabric,
    issue::MIN_LIFE,
    name::{Namespace, PodName},
};

struct Scripted {
    fabric: Arc<Fabric>,
    /// Answers that are failures, before the first good one.
    failures: AtomicUsize,
    asked: Mutex<Vec<Instant>>,
    answered: Arc<Notify>,
}

impl Issuer for Scripted {
    fn renew(&self, csr: &Csr) -> BoxFuture<'static, Result<Renewed, RenewError>> {
        self.asked.lock().unwrap().push(Instant::now());
        let fail = self
            .failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            })
            .is_ok();
        let chain = self.fabric.node_authority("edge-a").sign_pod(
            csr,
            &Namespace::default_namespace(),
            &PodName::new("db-0").unwrap(),
            Duration::from_secs(24 * 3600),
        );
        let roots = self.fabric.roots();
        let answered = self.answered.clone();
        Box::pin(async move {
            if fail {
                return Err(RenewError::Unreachable("nobody is there".to_owned()));
            }
            answered.notify_one();
            Ok((chain.unwrap(), roots))
        })
    }
}

/// Runs the loop until the first renewal, with a clock that moves with the timers, and returns when it asked.
async fn asked_until_renewed(failures: usize) -> Vec<Duration> {
    let fabric = Arc::new(Fabric::new());
    let live = fabric.pod("edge-a", "default", "db-0");
    let before = live.chain();
    let answered = Arc::new(Notify::new());
    let failures = AtomicUsize::new(failures);
    let issuer = Scripted {
        fabric,
        failures,
        asked: Mutex::default(),
        answered: answered.clone(),
    };
    let (start, wall) = (Instant::now(), SystemTime::now());
    let stop = std::pin::pin!(answered.notified());
    rotate_by(&live, &issuer, stop, || wall + start.elapsed()).await;
    assert_ne!(live.chain(), before);
    issuer
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|at| *at - start)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_leaf_is_renewed_about_half_way() {
    let asked = asked_until_renewed(0).await;
    let hour = Duration::from_secs(3600);
    assert_eq!(asked.len(), 1);
    assert!(asked[0] > hour * 10 && asked[0] < hour * 14, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_with_growing_pauses_up_to_150_s() {
    let asked = asked_until_renewed(12).await;
    let pauses: Vec<u64> = asked
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).as_secs())
        .collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 150, 150, 150, 150]);
}

#[tokio::test(start_paused = true)]
async fn once_it_is_over_nobody_waits_long_for_another_one() {
    // The last half of the day is over after 288 pauses of 150 s.
    let asked = asked_until_renewed(340).await;
    let pauses = asked.windows(2).map(|pair| pair[1] - pair[0]);
    let pauses: Vec<Duration> = pauses.collect();
    assert!(
        pauses[200] == LONGEST_PAUSE && pauses[330..].iter().all(|pause| *pause == EXPIRED_PAUSE),
        "{pauses:?}"
    );
}

#[tokio::test]
async fn an_answer_of_another_root_is_not_taken() {
    let (fabric, liar) = (Fabric::new(), Arc::new(Fabric::new()));
    let live = fabric.pod("edge-a", "default", "db-0");
    let before = (live.chain(), live.roots());
    let issuer = Scripted {
        fabric: liar,
        failures: AtomicUsize::new(0),
        asked: Mutex::default(),
        answered: Arc::default(),
    };
    let error = attempt(&live, &issuer).await.unwrap_err();
    assert!(error.contains("does not lead to a root"), "{error}");
    assert_eq!((live.chain(), live.roots()), before);
}

#[test]
fn the_backdated_part_is_not_life() {
    let now = SystemTime::now();
    let (begin, end) = (now - BACKDATE, now + MIN_LIFE);
    assert_eq!(half_life(begin, end), now + MIN_LIFE / 2);
    assert_eq!(due(begin, end, now, 0.0), MIN_LIFE / 2);
    assert_eq!(due(begin, end, now, 0.1), MIN_LIFE / 2 + MIN_LIFE / 20);
    assert_eq!(due(begin, end, end, 0.0), Duration::ZERO);
    // Short certificates of others have no backdated part.
    assert_eq!(half_life(now, now + MIN_LIFE), now + MIN_LIFE / 2);
    assert_eq!(half_life(now, now - MIN_LIFE), now);
}
