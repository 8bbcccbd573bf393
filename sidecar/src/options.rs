//! What may be said about single services, mapped or published. Pure: text in, values out.
//!
//! `service=key:value,key:value`, where `service` is written as in the lists of services; one without a port means all of
//! them, and what is said of a port wins. The keys are those of [`KEYS`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keel_certs::{Namespace, ServiceId};
use keel_fabric::consumer::FlowOptions;
use keel_fabric::options::{
    CHECK_TIMES, IDLE_TIMEOUTS, MAX_CHECKS, MAX_PRIORITY, MAX_RESUME_WINDOW, MAX_WEIGHT,
};
use keel_fabric::provider::{Check, Probe, PublicationOptions};
use keel_fabric::units::{Rate, Span, UnitError};
use keel_fabric::wire::Protocol;
use thiserror::Error;

use crate::spec::{self, MappedService, PublishedService};

/// Every key, with what it takes.
pub const KEYS: &[(&str, &str)] = &[
    ("limit", "a rate like 10MB/s"),
    ("resume-window", "0s to 600s"),
    ("weight", "0 to 1000"),
    ("priority", "0 to 1000, lower first"),
    ("sticky", "client"),
    ("check", "tcp, or a path like /healthz for http"),
    ("check-http", "a path like /healthz"),
    ("check-interval", "100ms to 1h"),
    ("check-timeout", "100ms to 1h"),
    ("check-failures", "1 to 100"),
    ("check-recoveries", "1 to 100"),
    ("idle-timeout", "1s to 1d"),
];

/// What is said about one service. Nothing said means the default, or what its provider says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceOptions {
    /// How long a flow without a leg is kept.
    pub resume_window: Option<Duration>,
    /// Share of new connections among providers of the same priority.
    pub weight: Option<u16>,
    /// Providers of a lower number are taken first.
    pub priority: Option<u16>,
    /// What decides that connections go to the same provider.
    pub sticky: Option<Sticky>,
    /// How the backend's health is found out.
    pub check: Option<Check>,
    /// Most bytes per second, each direction for itself.
    pub limit: Option<Rate>,
    /// How long a UDP association without packets is kept.
    pub idle_timeout: Option<Duration>,
}

/// What decides that connections go to the same provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sticky {
    /// The client's address, as long as its provider is healthy.
    Client,
}

/// Why an option was refused. Names the word and the right form.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum OptionError {
    /// No `service=` in front.
    #[error(
        "`{0}` names no service; write it as `service=key:value,...`, e.g. `mysql=limit:10MB/s`"
    )]
    Form(String),
    /// A word without its value.
    #[error("`{0}` has no value; write it as `key:value`, e.g. `limit:10MB/s`")]
    NoValue(String),
    /// A key that does not exist.
    #[error("`{key}` is no option of a service; there are {}", keys())]
    Key {
        /// The key as it was written.
        key: String,
    },
    /// A value that its key does not take.
    #[error("{key} `{value}` is wrong; it takes {takes}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value as it was written.
        value: String,
        /// What it takes.
        takes: &'static str,
    },
    /// A value with a wrong unit.
    #[error("{key}: {error}")]
    Unit {
        /// The key.
        key: &'static str,
        /// What is wrong.
        error: UnitError,
    },
    /// The service in front is not one.
    #[error("service `{service}`: {problem}")]
    Service {
        /// As it was written.
        service: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A check is described and not asked for.
    #[error(
        "{0} describes a check, and there is none; add `check:tcp`, or `check:/healthz` for HTTP"
    )]
    NoCheck(String),
    /// A key that is there twice.
    #[error("`{0}` is given twice for one service; leave one of them out")]
    Twice(String),
    /// A word that says nothing at this end.
    #[error("{key} means nothing here: `{service}` is not {missing}")]
    Elsewhere {
        /// The key.
        key: &'static str,
        /// The service.
        service: String,
        /// What it would have to be: mapped or published.
        missing: &'static str,
    },
    /// Neither mapped nor published.
    #[error("`{0}` is neither mapped nor published here; name one of the services that are")]
    Unknown(String),
}

fn keys() -> String {
    // `check-http` is how the file's `check: {http: PATH}` arrives; people write `check:PATH`.
    let names = KEYS.iter().map(|(name, _)| *name);
    let names: Vec<_> = names.filter(|name| *name != "check-http").collect();
    names.join(", ")
}

impl ServiceOptions {
    /// What `words` say, each a key and its value.
    ///
    /// # Errors
    /// [`OptionError`], which names the key or the value.
    pub fn of<'a>(words: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self, OptionError> {
        let mut options = Self::default();
        let (mut described, mut wanted) = (None, false);
        let mut seen = BTreeSet::new();
        for (key, value) in words {
            if !seen.insert(key) {
                return Err(OptionError::Twice(key.to_owned()));
            }
            options.set(key, value)?;
            match key {
                "check" | "check-http" => wanted = true,
                _ if key.starts_with("check-") => described = Some(key),
                _ => {}
            }
        }
        match described {
            Some(key) if !wanted => Err(OptionError::NoCheck(key.to_owned())),
            _ => Ok(options),
        }
    }

    /// Sets what `key` means to what `value` says.
    ///
    /// # Errors
    /// [`OptionError`], which names the key or the value.
    fn set(&mut self, key: &str, value: &str) -> Result<(), OptionError> {
        let Some(&(key, takes)) = KEYS.iter().find(|(name, _)| *name == key) else {
            return Err(OptionError::Key {
                key: key.to_owned(),
            });
        };
        let value = value.trim();
        let wrong = || OptionError::Value {
            key,
            value: value.to_owned(),
            takes,
        };
        let number = |least: u16, most: u16| {
            let number = value.parse::<u16>().ok();
            number
                .filter(|number| (least..=most).contains(number))
                .ok_or_else(wrong)
        };
        let span = |(least, most): (Duration, Duration)| {
            let span: Span = value
                .parse()
                .map_err(|error| OptionError::Unit { key, error })?;
            Some(span.0)
                .filter(|span| (least..=most).contains(span))
                .ok_or_else(wrong)
        };
        let path = || {
            let path = value.starts_with('/') && value.bytes().all(|byte| byte.is_ascii_graphic());
            path.then(|| Probe::Http(value.to_owned()))
                .ok_or_else(wrong)
        };
        match key {
            "limit" => {
                let rate = value
                    .parse()
                    .map_err(|error| OptionError::Unit { key, error })?;
                self.limit = Some(rate);
            }
            "resume-window" => {
                self.resume_window = Some(span((Duration::ZERO, MAX_RESUME_WINDOW))?)
            }
            "weight" => self.weight = Some(number(0, MAX_WEIGHT)?),
            "priority" => self.priority = Some(number(0, MAX_PRIORITY)?),
            "sticky" if value == "client" => self.sticky = Some(Sticky::Client),
            "idle-timeout" => self.idle_timeout = Some(span(IDLE_TIMEOUTS)?),
            "check" if value == "tcp" => self.checked().probe = Probe::Tcp,
            "check" | "check-http" => self.checked().probe = path()?,
            "check-interval" => self.checked().interval = span(CHECK_TIMES)?,
            "check-timeout" => self.checked().timeout = span(CHECK_TIMES)?,
            "check-failures" => self.checked().failures = number(1, MAX_CHECKS)?,
            "check-recoveries" => self.checked().recoveries = number(1, MAX_CHECKS)?,
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// Its words come in any order, so one that is described before it is named is one of TCP until then.
    fn checked(&mut self) -> &mut Check {
        self.check.get_or_insert(Check::new(Probe::Tcp))
    }

    /// These options, with those of `under` where they say nothing.
    #[must_use]
    fn over(self, under: Self) -> Self {
        Self {
            resume_window: self.resume_window.or(under.resume_window),
            weight: self.weight.or(under.weight),
            priority: self.priority.or(under.priority),
            sticky: self.sticky.or(under.sticky),
            check: self.check.or(under.check),
            limit: self.limit.or(under.limit),
            idle_timeout: self.idle_timeout.or(under.idle_timeout),
        }
    }

    /// What of it concerns flows to the service from here.
    #[must_use]
    pub fn flow(&self) -> FlowOptions {
        FlowOptions {
            limit: self.limit,
            resume_window: self.resume_window,
            idle_timeout: self.idle_timeout,
            ..FlowOptions::default()
        }
    }

    /// What of it concerns the service as it is published here.
    #[must_use]
    pub fn publication(&self) -> PublicationOptions {
        let default = PublicationOptions::default();
        PublicationOptions {
            weight: self.weight.unwrap_or(default.weight),
            priority: self.priority.unwrap_or(default.priority),
            check: self.check.clone(),
            limit: self.limit,
            resume_window: self.resume_window,
            idle_timeout: self.idle_timeout,
        }
    }
}

/// One `--service-option`: a service as it was written, and what is said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceOption {
    /// The service, not yet read: its namespace may be the pod's.
    pub service: String,
    /// What is said.
    pub options: ServiceOptions,
}

impl std::str::FromStr for ServiceOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let form = || OptionError::Form(text.to_owned());
        let (service, words) = text.split_once('=').ok_or_else(form)?;
        let words = words.split(',').map(|word| {
            let word = word.trim();
            let (key, value) = word
                .split_once(':')
                .ok_or_else(|| OptionError::NoValue(word.to_owned()))?;
            Ok((key.trim(), value))
        });
        let words = words.collect::<Result<Vec<_>, _>>()?;
        let options = ServiceOptions::of(words.into_iter())?;
        Ok(Self {
            service: service.trim().to_owned(),
            options,
        })
    }
}

/// One `--limit`: `service=rate`, or a rate for all services together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitArg {
    /// The service as it was written; `None` for all together.
    pub service: Option<String>,
    /// Most bytes per second.
    pub rate: Rate,
}

impl std::str::FromStr for LimitArg {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let (service, rate) = match text.split_once('=') {
            Some((service, rate)) => (Some(service.trim().to_owned()), rate),
            None => (None, text),
        };
        let rate = rate.parse().map_err(|error| OptionError::Unit {
            key: "limit",
            error,
        })?;
        Ok(Self { service, rate })
    }
}

/// What is said about all services of a sidecar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllOptions {
    services: BTreeMap<(ServiceId, Option<u16>), ServiceOptions>,
    /// Most bytes per second, each direction for itself, of all flows of this sidecar together.
    pub limit: Option<Rate>,
}

impl AllOptions {
    /// Adds what is said about one service; what was said before stays where this says nothing.
    ///
    /// # Errors
    /// The service is not written as one.
    pub fn add(&mut self, one: ServiceOption, namespace: &Namespace) -> Result<(), OptionError> {
        let (target, port, _) =
            spec::service(&one.service, namespace).map_err(|problem| OptionError::Service {
                service: one.service.clone(),
                problem,
            })?;
        let options = self.services.entry((target.service, port)).or_default();
        *options = one.options.over(std::mem::take(options));
        Ok(())
    }

    /// Adds a limit.
    ///
    /// # Errors
    /// The service is not written as one.
    pub fn add_limit(&mut self, one: LimitArg, namespace: &Namespace) -> Result<(), OptionError> {
        let Some(service) = one.service else {
            self.limit = Some(one.rate);
            return Ok(());
        };
        let options = ServiceOptions {
            limit: Some(one.rate),
            ..ServiceOptions::default()
        };
        self.add(ServiceOption { service, options }, namespace)
    }

    /// What is said about a port of a service.
    #[must_use]
    pub fn of(&self, service: &ServiceId, port: u16) -> ServiceOptions {
        let said = |port| {
            let key = (service.clone(), port);
            self.services.get(&key).cloned().unwrap_or_default()
        };
        said(Some(port)).over(said(None))
    }

    /// Whether everything that is said is said about a service that is mapped or published, at the end that it is for.
    ///
    /// # Errors
    /// The first service that is neither, or the word that means nothing there.
    pub fn only_about(
        &self,
        mapped: &[MappedService],
        published: &[PublishedService],
    ) -> Result<(), OptionError> {
        for ((service, port), said) in &self.services {
            let is_mapped = mapped.iter().any(|one| {
                // A mapping without a port is one of every port.
                one.target.service == *service
                    && (port.is_none() || one.port.is_none() || one.port == *port)
            });
            let is_published = published.iter().any(|one| {
                one.target.service == *service && port.is_none_or(|port| port == one.port)
            });
            let name = || match port {
                Some(port) => format!("{service}:{port}"),
                None => service.to_string(),
            };
            let elsewhere = |key, missing| OptionError::Elsewhere {
                key,
                service: name(),
                missing,
            };
            if !is_mapped && !is_published {
                return Err(OptionError::Unknown(name()));
            }
            let is_checked = published.iter().any(|one| {
                one.protocol == Protocol::Tcp
                    && one.target.service == *service
                    && port.is_none_or(|port| port == one.port)
            });
            if said.check.is_some() && !is_checked {
                return Err(elsewhere("check", "published over TCP"));
            }
            if said.sticky.is_some() && !is_mapped {
                return Err(elsewhere("sticky", "mapped"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
