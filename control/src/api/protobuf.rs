//! Kubernetes' binary encoding, for the few kinds that clients send in no other.
//!
//! A body is the magic number, then an envelope (`runtime.Unknown`: version, kind, the object's own message). Only what the kinds need
//! is described; fields that are not described are skipped, as protobuf has it.

use serde_json::{Map, Value};

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
    /// Text by text.
    Labels,
    Message(Message),
    Text,
    /// A field that may come several times: a list.
    Texts,
}

use Content::{Labels, Text, Texts};

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
        Field(14, "finalizers", Texts),
    ]),
);

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
    /// A number of any size; none of the described fields is one.
    Number,
}

/// Reads one message. Messages nest as deep as their descriptions, which are not recursive.
fn read(mut bytes: &[u8], message: Message) -> Result<Value, &'static str> {
    let mut object = Map::new();
    while let Some((number, wire)) = next(&mut bytes)? {
        let Some(Field(_, name, content)) = message.iter().find(|field| field.0 == number) else {
            continue;
        };
        let Wire::Bytes(bytes) = wire else {
            return Err("a field has another type");
        };
        match content {
            Text => {
                object.insert((*name).into(), utf8(bytes)?.into());
            }
            Texts => {
                let list = object
                    .entry(*name)
                    .or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    list.push(utf8(bytes)?.into());
                }
            }
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

/// Takes one field off the front; `None` at the end.
fn next<'a>(bytes: &mut &'a [u8]) -> Result<Option<(u64, Wire<'a>)>, &'static str> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let key = varint(bytes)?;
    let wire = match key & 7 {
        0 => {
            varint(bytes)?;
            Wire::Number
        }
        1 => {
            take(bytes, 8)?;
            Wire::Number
        }
        2 => {
            let length = varint(bytes)?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => {
            take(bytes, 4)?;
            Wire::Number
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
