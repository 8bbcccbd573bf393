use super::*;

fn option(text: &str) -> Result<ServiceOption, OptionError> {
    text.parse()
}

#[test]
fn every_key_sets_what_it_is_called() {
    let one = option(
        "mysql=limit:10MB/s, resume-window:30s,weight:10,priority:1,sticky:client,check:/healthz,\
         check-interval:1s,check-timeout:500ms,check-failures:4,check-recoveries:5,idle-timeout:20s",
    )
    .unwrap();
    assert_eq!(one.service, "mysql");
    let check = Check {
        probe: Probe::Http("/healthz".into()),
        interval: Duration::from_secs(1),
        timeout: Duration::from_millis(500),
        failures: 4,
        recoveries: 5,
    };
    let expected = ServiceOptions {
        resume_window: Some(Duration::from_secs(30)),
        weight: Some(10),
        priority: Some(1),
        sticky: Some(Sticky::Client),
        check: Some(check),
        limit: Some("10MB/s".parse().unwrap()),
        idle_timeout: Some(Duration::from_secs(20)),
    };
    assert_eq!(one.options, expected);
    for (key, _) in KEYS {
        let error = option(&format!("a={key}:?")).unwrap_err().to_string();
        assert!(error.starts_with(key), "{error}");
    }
}

#[test]
fn a_wrong_word_is_named_with_what_is_right() {
    for (text, parts) in [
        ("mysql", &["`mysql`", "service=key:value"] as &[_]),
        ("mysql=limit", &["`limit` has no value", "key:value"]),
        ("mysql=speed:1MB/s", &["`speed`", "resume-window"]),
        ("mysql=limit:10", &["limit", "`10` is no rate", "10MB/s"]),
        ("mysql=weight:1001", &["weight `1001`", "0 to 1000"]),
        ("mysql=resume-window:601s", &["`601s`", "0s to 600s"]),
        (
            "mysql=resume-window:10",
            &["resume-window", "no length of time"],
        ),
        ("mysql=weight:1,weight:2", &["`weight`", "twice"]),
        ("mysql=sticky:yes", &["sticky `yes`", "client"]),
        ("mysql=check-interval:1s", &["check-interval", "check:tcp"]),
        ("mysql=check:healthz", &["check `healthz`", "/healthz"]),
        (
            "mysql=check-failures:0",
            &["check-failures `0`", "1 to 100"],
        ),
    ] {
        let error = option(text).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

#[test]
fn what_is_said_of_a_port_wins_over_what_is_said_of_the_service() {
    let namespace = Namespace::default_namespace();
    let mut all = AllOptions::default();
    for text in [
        "mysql=limit:10MB/s,weight:2",
        "mysql.default.svc:3306=limit:1MB/s",
    ] {
        all.add(option(text).unwrap(), &namespace).unwrap();
    }
    for text in ["5MB/s", "redis=2MB/s"] {
        all.add_limit(text.parse().unwrap(), &namespace).unwrap();
    }
    let of = |service: &str, port| all.of(&service.parse().unwrap(), port);
    let rate = |text: &str| Some(text.parse().unwrap());
    assert_eq!(of("mysql.default", 3306).limit, rate("1MB/s"));
    assert_eq!(of("mysql.default", 3306).weight, Some(2));
    assert_eq!(of("mysql.default", 1).limit, rate("10MB/s"));
    assert_eq!(of("redis.default", 1).limit, rate("2MB/s"));
    assert_eq!(of("mysql.other", 3306), ServiceOptions::default());
    assert_eq!(all.limit, rate("5MB/s"));
}

#[test]
fn what_is_said_is_about_something_here_and_for_this_end() {
    let namespace = Namespace::default_namespace();
    let mapped = spec::parse_mapped("mysql:3306,any", &namespace).unwrap();
    let published =
        spec::parse_published("web=127.0.0.1:80,time:123/udp=127.0.0.1:123", &namespace).unwrap();
    let only = |text: &str| {
        let mut all = AllOptions::default();
        all.add(option(text).unwrap(), &namespace).unwrap();
        let only = all.only_about(&mapped, &published);
        only.map_err(|error| error.to_string())
    };
    for text in [
        "mysql=sticky:client,weight:1",
        "mysql:3306=limit:1MB/s",
        "any:1=limit:1MB/s",
        "web=check:tcp,check-interval:1s",
        "web:80=weight:2",
    ] {
        assert_eq!(only(text), Ok(()), "{text}");
    }
    for (text, part) in [
        ("redis=limit:1MB/s", "`redis.default`"),
        ("mysql:3307=limit:1MB/s", "`mysql.default:3307`"),
        ("web:81=limit:1MB/s", "`web.default:81`"),
        ("mysql=check:tcp", "not published"),
        ("time=check:tcp", "not published over TCP"),
        ("web=sticky:client", "not mapped"),
    ] {
        let error = only(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}
