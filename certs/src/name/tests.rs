use proptest::prelude::*;

use super::*;

#[test]
fn labels_and_subdomains_follow_rfc_1123() {
    for good in ["a", "a-b", "0", "x1", &"a".repeat(63)] {
        assert!(ServiceName::new(good).is_ok(), "{good}");
        assert!(NodeName::new(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "-",
        "-a",
        "a-",
        "A",
        "a_b",
        "a/b",
        "ü",
        "a b",
        "a.b",
        &"a".repeat(64),
    ] {
        assert!(ServiceName::new(bad).is_err(), "{bad}");
    }
    assert!(NodeName::new("edge-1.example").is_ok());
    for bad in ["a..b", ".a", "a.", "..", ".", "a/../b", "a%2fb"] {
        assert!(NodeName::new(bad).is_err(), "{bad}");
    }
}

#[test]
fn no_cluster_is_called_svc() {
    assert_eq!(
        ClusterName::new("svc"),
        Err(NameError::Reserved {
            what: "cluster name",
            value: "svc".into()
        })
    );
}

#[test]
fn users_may_not_be_dots() {
    assert!(UserName::new("Ann_B.c-1").is_ok());
    for bad in [".", "..", "", "-a", "a/b", "a b"] {
        assert!(UserName::new(bad).is_err(), "{bad}");
    }
}

#[test]
fn errors_name_the_value_and_the_remedy() {
    let text = Namespace::new("Team_A").unwrap_err().to_string();
    assert_eq!(
        text,
        "\"Team_A\" is not a namespace: use lower-case letters, digits and '-', with a letter or digit at both ends"
    );
}

#[test]
fn host_names_become_node_names() {
    assert_eq!(
        NodeName::from_host("Edge_Box.LOCAL").unwrap().as_str(),
        "edge-box.local"
    );
    assert_eq!(NodeName::from_host("-x-..y").unwrap().as_str(), "x.y");
    assert_eq!(
        NodeName::from_host("__"),
        Err(NameError::Empty { what: "node name" })
    );
}

#[test]
fn services_have_a_name_and_a_namespace() {
    let id: ServiceId = "mysql.default".parse().unwrap();
    assert_eq!(
        (id.name.as_str(), id.namespace.as_str()),
        ("mysql", "default")
    );
    for bad in ["mysql", "mysql.", ".default", "mysql.default.x", "a b.c"] {
        assert!(bad.parse::<ServiceId>().is_err(), "{bad}");
    }
}

#[test]
fn serde_checks_too() {
    assert_eq!(
        serde_json::to_string(&NodeName::new("a").unwrap()).unwrap(),
        "\"a\""
    );
    assert!(serde_json::from_str::<NodeName>("\"A\"").is_err());
    assert!(serde_json::from_str::<ServiceId>("\"a.b\"").is_ok());
}

proptest! {
    #[test]
    fn accepted_names_round_trip(text in "[a-z0-9.-]{0,70}") {
        if let Ok(name) = NodeName::new(&text) {
            prop_assert_eq!(name.to_string().parse::<NodeName>().unwrap(), name);
        }
    }

    #[test]
    fn any_text_becomes_a_name_or_nothing(text in "\\PC{0,400}") {
        match NodeName::from_host(&text) {
            Ok(_) | Err(NameError::Empty { .. }) => {}
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
