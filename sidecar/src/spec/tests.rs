use proptest::prelude::*;

use super::*;

fn namespace() -> Namespace {
    "default".parse().unwrap()
}

fn one(item: &str) -> MappedService {
    let mut all = parse_mapped(item, &namespace()).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn error(item: &str) -> String {
    parse_mapped(item, &namespace()).unwrap_err().to_string()
}

#[test]
fn every_part_is_optional_but_the_name() {
    let full = one("db=mysql.prod.east:3306/udp");
    assert_eq!(full.alias.unwrap().as_ref(), "db");
    assert_eq!(full.target.to_string(), "mysql.prod.east");
    assert_eq!((full.port, full.protocol), (Some(3306), Protocol::Udp));
    let bare = one("mysql");
    assert_eq!(bare.target.to_string(), "mysql.default");
    assert_eq!(
        (bare.alias, bare.port, bare.protocol),
        (None, None, Protocol::Tcp)
    );
}

#[test]
fn suffixes_of_cluster_names_are_dropped() {
    for suffix in [
        ".svc",
        ".svc.cluster.local",
        ".svc.clusterset.local",
        ".svc.",
        "",
    ] {
        assert_eq!(
            one(&format!("mysql.prod{suffix}")).target.to_string(),
            "mysql.prod"
        );
    }
    assert_eq!(
        one("mysql.prod.east.svc:1")
            .target
            .cluster
            .unwrap()
            .as_ref(),
        "east"
    );
}

#[test]
fn spaces_and_empty_items_are_nothing() {
    assert!(parse_mapped("", &namespace()).unwrap().is_empty());
    assert_eq!(
        parse_mapped(" mysql , redis,", &namespace()).unwrap().len(),
        2
    );
}

#[test]
fn an_error_names_the_item_and_the_form() {
    for item in [
        "My_SQL",
        ".default",
        "mysql..east",
        "a.b.c.d",
        "mysql:0",
        "mysql:65536",
        "mysql:+80",
        "mysql:x",
        "mysql/sctp",
        "=mysql",
        "a=",
        "mysql.default.svc.east",
        "web=127.0.0.1:8080",
        "web=[::1]:80",
        "mysql:1:2",
    ] {
        let text = error(item);
        assert!(text.contains(item), "{text}");
        assert!(text.contains(MAPPED_FORM), "{text}");
    }
    let text = parse_published("web", &namespace())
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("`web`") && text.contains(PUBLISHED_FORM),
        "{text}"
    );
}

#[test]
fn published_takes_the_backends_port_unless_given() {
    let all = parse_published(
        "web=127.0.0.1:8080, mysql.prod:3306=db.internal:13306,v6=[::1]:53",
        &namespace(),
    )
    .unwrap();
    let ports: Vec<_> = all
        .iter()
        .map(|p| (p.target.to_string(), p.port, p.backend.port()))
        .collect();
    assert_eq!(
        ports,
        [
            ("web.default".into(), 8080, 8080),
            ("mysql.prod".into(), 3306, 13306),
            ("v6.default".into(), 53, 53)
        ]
    );
}

#[test]
fn published_errors_are_clear() {
    for item in [
        "web=127.0.0.1",
        "web=:80",
        "web=127.0.0.1:0",
        "a=web=127.0.0.1:80",
        "web=127.0.0.1:99999",
    ] {
        let text = parse_published(item, &namespace()).unwrap_err().to_string();
        assert!(text.contains(item), "{text}");
    }
    assert!(matches!(
        parse_published("web=127.0.0.1:80,web:80=127.0.0.1:81", &namespace()),
        Err(SpecError::Duplicate { .. })
    ));
}

#[test]
fn the_same_service_twice_is_an_error_but_two_ports_are_not() {
    for list in [
        "mysql,mysql",
        "mysql,mysql.default",
        "mysql:1,mysql:1",
        "mysql,mysql:3306",
        "mysql:3306,mysql",
        "x=a,x=b",
        "b=a,b",
    ] {
        assert!(
            matches!(
                parse_mapped(list, &namespace()),
                Err(SpecError::Duplicate { .. })
            ),
            "{list}"
        );
    }
    for list in [
        "mysql:1,mysql:2",
        "mysql:53/tcp,mysql:53/udp",
        "mysql,mysql.other",
        "mysql,mysql.default.east",
        "x=a:1,x=a:2",
    ] {
        parse_mapped(list, &namespace()).unwrap();
    }
}

#[test]
fn one_hundred_is_the_limit() {
    let list = |n: usize| {
        (0..n)
            .map(|i| format!("s{i}"))
            .collect::<Vec<_>>()
            .join(",")
    };
    assert_eq!(parse_mapped(&list(100), &namespace()).unwrap().len(), 100);
    assert_eq!(
        parse_mapped(&list(101), &namespace()),
        Err(SpecError::TooMany { given: 101 })
    );
    assert!(error(&list(101)).contains("101"));
}

proptest! {
    #[test]
    fn no_text_panics(text in ".{0,80}") {
        let _ = parse_mapped(&text, &namespace());
        let _ = parse_published(&text, &namespace());
    }

    #[test]
    fn what_was_written_is_what_is_read(
        alias in proptest::option::of("[a-z][a-z0-9]{0,5}"), name in "[a-z][a-z0-9-]{0,5}[a-z0-9]",
        space in proptest::option::of("[a-z]{1,8}"), port in proptest::option::of(1u16..), udp in any::<bool>(),
    ) {
        let mut text = String::new();
        if let Some(alias) = &alias { text += &format!("{alias}="); }
        text += &name;
        if let Some(space) = &space {
            prop_assume!(space != "svc");
            text += &format!(".{space}");
        }
        if let Some(port) = port { text += &format!(":{port}"); }
        if udp { text += "/udp"; }
        let read = one(&text);
        prop_assert_eq!(read.alias.map(|a| a.to_string()), alias);
        prop_assert_eq!(read.target.service.name.as_ref(), &name);
        prop_assert_eq!(read.target.service.namespace.as_ref(), space.as_deref().unwrap_or("default"));
        prop_assert_eq!(read.port, port);
        prop_assert_eq!(read.protocol == Protocol::Udp, udp);
    }
}
