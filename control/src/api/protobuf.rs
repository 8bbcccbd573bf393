//! Kubernetes' binary encoding, for the few kinds that clients send in no other.
//!
//! A body is the magic number, then an envelope (`runtime.Unknown`: version, kind, the object's own message). Only what the kinds need
//! is described; fields that are not described are skipped, as protobuf has it.

use serde_json::{Map, Value};
use time::OffsetDateTime;

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// A message: its fields that mean something here.
pub(crate) type Message = &'static [Field];

/// A field of a message: its number, its name in JSON, what it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field(pub(crate) u64, pub(crate) &'static str, pub(crate) Content);

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    Bool,
    /// Text by text.
    Labels,
    Message(Message),
    /// A field that may come several times: a list.
    Messages(Message),
    /// Kubernetes' `MicroTime`.
    MicroTime,
    Number,
    Text,
    /// As [`Content::Messages`].
    Texts,
    /// Kubernetes' `Time`.
    Time,
}

use Content::{Bool, Labels, MicroTime, Number, Text, Texts, Time};

/// Kubernetes' `ObjectMeta`, as far as clients may say it.
pub(crate) const METADATA: Field = Field(
    1,
    "metadata",
    Content::Message(&[
        Field(1, "name", Text),
        Field(2, "generateName", Text),
        Field(3, "namespace", Text),
        Field(5, "uid", Text),
        Field(6, "resourceVersion", Text),
        Field(11, "labels", Labels),
        Field(12, "annotations", Labels),
        Field(
            13,
            "ownerReferences",
            Content::Messages(&[
                Field(1, "kind", Text),
                Field(3, "name", Text),
                Field(4, "uid", Text),
                Field(5, "apiVersion", Text),
                Field(6, "controller", Bool),
                Field(7, "blockOwnerDeletion", Bool),
            ]),
        ),
        Field(14, "finalizers", Texts),
    ]),
);

/// Both of Kubernetes' times.
const MOMENT: Message = &[Field(1, "seconds", Number), Field(2, "nanos", Number)];

const ENVELOPE: Message = &[
    Field(
        1,
        "type",
        Content::Message(&[Field(1, "apiVersion", Text), Field(2, "kind", Text)]),
    ),
    Field(3, "contentEncoding", Text),
];
/// The object in its envelope.
const RAW: u64 = 2;

/// Reads an object; the error says what is wrong with the bytes.
pub(crate) fn parse(bytes: &[u8], message: Message) -> Result<Value, &'static str> {
    let body = bytes
        .strip_prefix(MAGIC)
        .ok_or("the magic number is missing")?;
    let envelope = read(body, ENVELOPE)?;
    let text = |pointer: &str| {
        let value = envelope.pointer(pointer).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    if !text("/contentEncoding").is_empty() {
        return Err("the object is encoded once more");
    }
    let mut raw: &[u8] = &[];
    let mut rest = body;
    while let Some((number, wire)) = next(&mut rest)? {
        if let (RAW, Wire::Bytes(bytes)) = (number, wire) {
            raw = bytes;
        }
    }
    let mut object = read(raw, message)?;
    object["apiVersion"] = text("/type/apiVersion").into();
    object["kind"] = text("/type/kind").into();
    Ok(object)
}

/// What a field holds on the wire.
enum Wire<'a> {
    Bytes(&'a [u8]),
    Number(u64),
    /// A number of a fixed size; none of the described fields is one.
    Fixed,
}

/// Reads one message. Messages nest as deep as their descriptions, which are not recursive.
fn read(mut bytes: &[u8], message: Message) -> Result<Value, &'static str> {
    let mut object = Map::new();
    while let Some((number, wire)) = next(&mut bytes)? {
        let Some(Field(_, name, content)) = message.iter().find(|field| field.0 == number) else {
            continue;
        };
        let bytes = match (wire, content) {
            (Wire::Number(number), Bool) => {
                object.insert((*name).into(), (number != 0).into());
                continue;
            }
            (Wire::Number(number), Number) => {
                object.insert((*name).into(), number.cast_signed().into());
                continue;
            }
            (Wire::Bytes(bytes), content) if !matches!(content, Bool | Number) => bytes,
            _ => return Err("a field has another type"),
        };
        match content {
            // Told above.
            Bool | Number => {}
            Text => {
                object.insert((*name).into(), utf8(bytes)?.into());
            }
            Time | MicroTime => {
                let moment = read(bytes, MOMENT)?;
                // No time at all is an empty one.
                if let Some(text) = moment_text(&moment, matches!(content, MicroTime))? {
                    object.insert((*name).into(), text.into());
                }
            }
            Texts => append(&mut object, name, utf8(bytes)?.into()),
            Content::Messages(inner) => append(&mut object, name, read(bytes, inner)?),
            Labels => {
                let entry = read(bytes, &[Field(1, "key", Text), Field(2, "value", Text)])?;
                let map = object
                    .entry(*name)
                    .or_insert_with(|| Value::Object(Map::new()));
                map[entry["key"].as_str().unwrap_or_default()] =
                    entry["value"].as_str().unwrap_or_default().into();
            }
            Content::Message(inner) => {
                object.insert((*name).into(), read(bytes, inner)?);
            }
        }
    }
    Ok(Value::Object(object))
}

fn append(object: &mut Map<String, Value>, name: &str, item: Value) {
    let list = object
        .entry(name)
        .or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(list) = list {
        list.push(item);
    }
}

/// As Kubernetes writes it in JSON: to the second, or to the microsecond.
fn moment_text(moment: &Value, micro: bool) -> Result<Option<String>, &'static str> {
    let part = |name: &str| moment.get(name).and_then(Value::as_i64);
    let (seconds, nanos) = (part("seconds"), part("nanos"));
    if seconds.is_none() && nanos.is_none() {
        return Ok(None);
    }
    let at = OffsetDateTime::from_unix_timestamp(seconds.unwrap_or(0));
    let at = at.map_err(|_| "a time is out of range")?;
    let (date, time) = (at.date(), at.time());
    if !(0..10_000).contains(&date.year()) {
        return Err("a time is out of range");
    }
    let micros = match (micro, nanos.unwrap_or(0)) {
        (_, nanos) if !(0..1_000_000_000).contains(&nanos) => return Err("a time is out of range"),
        (true, nanos) => format!(".{:06}", nanos / 1000),
        (false, _) => String::new(),
    };
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let (hour, minute, second) = time.as_hms();
    Ok(Some(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{micros}Z"
    )))
}

/// Takes one field off the front; `None` at the end.
fn next<'a>(bytes: &mut &'a [u8]) -> Result<Option<(u64, Wire<'a>)>, &'static str> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let key = varint(bytes)?;
    let wire = match key & 7 {
        0 => Wire::Number(varint(bytes)?),
        1 => {
            take(bytes, 8)?;
            Wire::Fixed
        }
        2 => {
            let length = varint(bytes)?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => {
            take(bytes, 4)?;
            Wire::Fixed
        }
        _ => return Err("a field has a type that there is not"),
    };
    Ok(Some((key >> 3, wire)))
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], &'static str> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (taken, rest) = bytes
        .split_at_checked(length)
        .ok_or("a field is longer than the body")?;
    *bytes = rest;
    Ok(taken)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or("a number is cut off")?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err("a number is too long")
}

fn utf8(bytes: &[u8]) -> Result<&str, &'static str> {
    std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const OBJECT: Message = &[
        METADATA,
        Field(2, "spec", Content::Message(&[Field(1, "namespace", Text)])),
    ];

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        bytes.extend_from_slice(content);
        bytes
    }

    fn body(raw: &[u8]) -> Vec<u8> {
        let kind = [field(1, b"v1"), field(2, b"Thing")].concat();
        [
            MAGIC.to_vec(),
            field(1, &kind),
            field(2, raw),
            field(3, b""),
            field(4, b""),
        ]
        .concat()
    }

    #[test]
    fn an_object_is_read() {
        let label = [field(1, b"tier"), field(2, b"1")].concat();
        let meta = [
            field(1, b"prod"),
            field(8, b""),
            field(11, &label),
            field(14, b"a"),
            field(14, b"b"),
            // A number and a fixed one that nobody described.
            vec![7 << 3, 0x96, 0x01],
            vec![9 << 3 | 1, 1, 2, 3, 4, 5, 6, 7, 8],
        ]
        .concat();
        let raw = [field(1, &meta), field(2, &field(1, b"x"))].concat();
        assert_eq!(
            parse(&body(&raw), OBJECT).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Thing", "spec": {"namespace": "x"},
                "metadata": {"name": "prod", "labels": {"tier": "1"}, "finalizers": ["a", "b"]},
            })
        );
    }

    #[test]
    fn numbers_and_times_are_read() {
        let message: Message = &[
            Field(1, "at", Time),
            Field(2, "exactly", MicroTime),
            Field(3, "never", Time),
            Field(4, "count", Number),
            Field(5, "controls", Bool),
            Field(6, "owners", Content::Messages(&[Field(1, "kind", Text)])),
        ];
        // 1,767,225,600 s and 1,234,567 ns.
        let moment = [
            &[1 << 3, 0x80, 0xf2, 0xd6, 0xca, 0x06][..],
            &[2 << 3, 0x87, 0xad, 0x4b],
        ];
        let moment = moment.concat();
        let minus_one = [vec![4 << 3], vec![0xff; 9], vec![1]].concat();
        let raw = [
            field(1, &moment),
            field(2, &moment),
            field(3, b""),
            minus_one,
            vec![5 << 3, 1],
            field(6, &field(1, b"a")),
            field(6, &field(1, b"b")),
        ]
        .concat();
        assert_eq!(
            parse(&body(&raw), message).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Thing", "at": "2026-01-01T00:00:00Z", "exactly": "2026-01-01T00:00:00.001234Z",
                "count": -1, "controls": true, "owners": [{"kind": "a"}, {"kind": "b"}],
            })
        );
        for wrong in [
            field(1, &[vec![1 << 3], vec![0xff; 9], vec![0]].concat()),
            field(1, &[2 << 3, 0x80, 0x94, 0xeb, 0xdc, 0x03]),
            vec![1 << 3, 1],
            field(4, b"1"),
        ] {
            let error = parse(&body(&wrong), message).unwrap_err();
            assert!(
                error.contains("out of range") || error.contains("another type"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_broken_is_refused() {
        let good = body(&field(1, &field(1, b"prod")));
        assert!(parse(&good, OBJECT).is_ok());
        for (bytes, why) in [
            (b"{}".to_vec(), "magic"),
            (body(&[1 << 3 | 2, 200]), "cut off"),
            (body(&[1 << 3 | 2, 5, 1]), "longer"),
            (body(&[1 << 3, 1]), "another type"),
            (body(&[1 << 3 | 3]), "there is not"),
            (body(&field(1, &field(1, &[0xff]))), "UTF-8"),
            (body(&[0xff; 12]), "too long"),
        ] {
            let error = parse(&bytes, OBJECT).unwrap_err();
            assert!(error.contains(why), "{bytes:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&body(&bytes), OBJECT);
            let _ = parse(&[MAGIC, &bytes].concat(), OBJECT);
        }
    }
}
