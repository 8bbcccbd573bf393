//! What the spec says about single services. Pure.

use std::str::FromStr;
use std::time::Duration;

use keel_fabric::options::{CHECK_TIMES, IDLE_TIMEOUTS, MAX_RESUME_WINDOW};
use keel_fabric::provider::{Check, Probe, PublicationOptions};
use keel_fabric::units::Span;

use super::{AdvertisedService, HealthCheck};

/// An option that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OptionFault {
    /// Its path below the service.
    pub(crate) key: &'static str,
    /// What was written.
    pub(crate) value: String,
    /// What is wrong with it.
    pub(crate) why: String,
}

/// The options of an advertised service, and what of them cannot be used. The rest counts all the same.
pub(crate) fn options(service: &AdvertisedService) -> (PublicationOptions, Vec<OptionFault>) {
    let mut faults = Vec::new();
    let default = PublicationOptions::default();
    let window = (Duration::ZERO, MAX_RESUME_WINDOW);
    let options = PublicationOptions {
        weight: service.weight.unwrap_or(default.weight),
        priority: service.priority.unwrap_or(default.priority),
        check: service.check.as_ref().map(|one| check(one, &mut faults)),
        limit: parsed("limit", &service.limit, &mut faults),
        resume_window: span("resumeWindow", &service.resume_window, window, &mut faults),
        idle_timeout: span(
            "idleTimeout",
            &service.idle_timeout,
            IDLE_TIMEOUTS,
            &mut faults,
        ),
    };
    (options, faults)
}

fn check(one: &HealthCheck, faults: &mut Vec<OptionFault>) -> Check {
    let probe = match one.http.as_deref() {
        None => Probe::Tcp,
        Some(path) if path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic()) => {
            Probe::Http(path.to_owned())
        }
        Some(path) => {
            faults.push(OptionFault {
                key: "check.http",
                value: path.to_owned(),
                why: "must be a path like /healthz".to_owned(),
            });
            Probe::Tcp
        }
    };
    let mut check = Check::new(probe);
    let mut time = |key, text: &Option<String>, to: &mut Duration| {
        *to = span(key, text, CHECK_TIMES, faults).unwrap_or(*to);
    };
    time("check.interval", &one.interval, &mut check.interval);
    time("check.timeout", &one.timeout, &mut check.timeout);
    check.failures = one.failures.unwrap_or(check.failures);
    check.recoveries = one.recoveries.unwrap_or(check.recoveries);
    check
}

fn span(
    key: &'static str,
    text: &Option<String>,
    (least, most): (Duration, Duration),
    faults: &mut Vec<OptionFault>,
) -> Option<Duration> {
    let span: Span = parsed(key, text, faults)?;
    if (least..=most).contains(&span.0) {
        return Some(span.0);
    }
    faults.push(OptionFault {
        key,
        value: span.to_string(),
        why: format!("must be {} to {}", Span(least), Span(most)),
    });
    None
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(
    key: &'static str,
    text: &Option<String>,
    faults: &mut Vec<OptionFault>,
) -> Option<T> {
    let text = text.as_deref()?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(error) => {
            faults.push(OptionFault {
                key,
                value: text.to_owned(),
                why: error.to_string(),
            });
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(mut more: serde_json::Value) -> AdvertisedService {
        let fields = more.as_object_mut().unwrap();
        fields.insert("name".into(), "a".into());
        fields.insert("port".into(), 1.into());
        serde_json::from_value(more).unwrap()
    }

    #[test]
    fn everything_said_is_used() {
        let all = service(serde_json::json!({
            "weight": 5, "priority": 2, "limit": "10MB/s", "resumeWindow": "30s", "idleTimeout": "20s",
            "check": {"http": "/healthz", "interval": "1s", "timeout": "500ms", "failures": 4, "recoveries": 5}}));
        let (options, faults) = options(&all);
        assert!(faults.is_empty(), "{faults:?}");
        let check = Check {
            probe: Probe::Http("/healthz".into()),
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            failures: 4,
            recoveries: 5,
        };
        let expected = PublicationOptions {
            weight: 5,
            priority: 2,
            check: Some(check),
            limit: Some("10MB/s".parse().unwrap()),
            resume_window: Some(Duration::from_secs(30)),
            idle_timeout: Some(Duration::from_secs(20)),
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn what_cannot_be_used_is_a_fault_and_the_rest_counts() {
        let all = service(serde_json::json!({
            "weight": 5, "limit": "10", "resumeWindow": "601s", "check": {"interval": "1x", "http": "healthz"}}));
        let (options, faults) = options(&all);
        assert_eq!(faults.len(), 4, "{faults:?}");
        let expected = PublicationOptions {
            weight: 5,
            check: Some(Check::new(Probe::Tcp)),
            ..PublicationOptions::default()
        };
        assert_eq!(options, expected);
    }
}
