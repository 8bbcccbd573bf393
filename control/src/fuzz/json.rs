//! Objects that are nearly right: of a wrong type here and there, with fields twice, missing, unknown, deep or long.

use serde_json::Value;

use super::{Random, hurt};

/// What may stand where something else belongs.
const ODD: [&str; 24] = [
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1.5",
    "1e400",
    "-0.0",
    "65536",
    "2147483648",
    "9223372036854775808",
    "18446744073709551616",
    "\"\"",
    "\"a\"",
    "\"-\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\\u202e.\"",
    "\"9999-99-99T99:99:99Z\"",
    "\"../..\"",
    "[]",
    "[null]",
    "{}",
    "{\"\":{}}",
];
/// Fields that mean something to somebody.
const FIELDS: [&str; 16] = [
    "kind",
    "apiVersion",
    "metadata",
    "spec",
    "status",
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "finalizers",
    "deletionTimestamp",
    "managedFields",
    "labels",
    "ownerReferences",
    "",
];

/// Writes JSON that is mostly `Value`.
pub(crate) struct Json<'a> {
    random: &'a mut Random,
    out: String,
    /// One in so many values is changed.
    rate: usize,
}

impl<'a> Json<'a> {
    /// The bytes of something like one of these.
    pub(crate) fn like(random: &'a mut Random, golden: &Value) -> Vec<u8> {
        if random.once_in(400) {
            return swollen(random, golden);
        }
        let rate = *random.pick(&[6, 24, 80, usize::MAX]);
        let mut json = Json {
            random,
            out: String::new(),
            rate,
        };
        json.value(golden);
        let Json { random, out, .. } = json;
        let mut bytes = out.into_bytes();
        if random.once_in(6) {
            hurt(random, &mut bytes);
        }
        bytes
    }

    fn odd(&mut self) -> bool {
        self.rate != usize::MAX && self.random.once_in(self.rate)
    }

    fn value(&mut self, value: &Value) {
        if self.odd() {
            return self.something();
        }
        match value {
            Value::Array(items) => {
                self.out.push('[');
                let mut first = true;
                for item in items {
                    let times = if self.odd() { self.random.below(3) } else { 1 };
                    for _ in 0..times {
                        self.comma(&mut first);
                        self.value(item);
                    }
                }
                self.out.push(']');
            }
            Value::Object(fields) => {
                self.out.push('{');
                let mut first = true;
                for (name, value) in fields {
                    let times = if self.odd() { self.random.below(3) } else { 1 };
                    for _ in 0..times {
                        self.comma(&mut first);
                        self.name(name);
                        self.value(value);
                    }
                    if self.odd() {
                        self.comma(&mut first);
                        let name = self.random.text(&FIELDS);
                        self.name(&name);
                        self.something();
                    }
                }
                self.out.push('}');
            }
            other => self.out.push_str(&other.to_string()),
        }
    }

    fn comma(&mut self, first: &mut bool) {
        if !std::mem::take(first) {
            self.out.push(',');
        }
    }

    fn name(&mut self, name: &str) {
        self.out.push_str(&Value::from(name).to_string());
        self.out.push(':');
    }

    fn something(&mut self) {
        match self.random.below(12) {
            0 => {
                let depth = 1 + self.random.below(150);
                let (open, close) = *self.random.pick(&[("[", "]"), ("{\"a\":", "}")]);
                self.out.push_str(&open.repeat(depth));
                self.out.push('1');
                self.out.push_str(&close.repeat(depth));
            }
            1 => {
                let long = 1 << self.random.below(13);
                let text = self
                    .random
                    .text(&["x", "é", "\u{1}", "-", "1"])
                    .repeat(long);
                self.out.push_str(&Value::from(text).to_string());
            }
            _ => {
                let odd = self.random.text(&ODD);
                self.out.push_str(&odd);
            }
        }
    }
}

/// A field with a name that is as long as a body may be, over things that are told to the sender, each with that name.
fn swollen(random: &mut Random, golden: &Value) -> Vec<u8> {
    let long = random
        .text(&["x", "\\", "é"])
        .repeat(1 << (8 + random.below(12)));
    let inside = random.text(&[
        "\"a\":1",
        "\"a\":1,\"b\":1",
        "\"frps\":{\"bindPort\":-1}",
        "\"\":null",
    ]);
    let many = vec![inside; 1 + random.below(100)].join(",");
    let name = Value::from(long);
    let part = random.text(&["metadata", "spec", "status", "labels", "x"]);
    let more = match random.below(3) {
        0 => format!("{{{name}:{{{many}}}}}"),
        1 => format!("{{{name}:1,{name}:{{{many}}},{many}}}"),
        _ => format!("{{\"labels\":{{{name}:1}},\"annotations\":{{{name}:{{{many}}}}}}}"),
    };
    let text = golden.to_string();
    let text = text.strip_suffix('}').unwrap_or(&text);
    format!("{text},\"{part}\":{more}}}").into_bytes()
}
