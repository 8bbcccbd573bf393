use super::*;

fn once(dir: &Path) -> Flags {
    Flags {
        once: true,
        data_dir: Some(dir.to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_proves_itself_again_on_the_data_of_the_first_time() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        run(once(dir.path()), CancellationToken::new())
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_before_the_proof_it_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let running = run(once(dir.path()), stop.clone());
    let interrupt = async {
        // As soon as there is something to tear down.
        let socket = dir.path().join("edge-a/admin.sock");
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(running, interrupt);
    assert!(outcome.unwrap_err().to_string().contains("stopped"));
}
