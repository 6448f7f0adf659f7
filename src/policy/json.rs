//! Reading settings: each key with the type that it must have. A null is the same as no key.

use serde_json::{Map, Value};

use crate::error::{Result, ensure, fail};

/// A JSON object, and what messages call it.
pub struct Object<'a> {
    pub name: String,
    pub map: &'a Map<String, Value>,
}

/// Parses a text that must be a JSON object.
pub fn parse(text: &str, name: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => fail!(InvalidArgument, "{name} is {}, must be a JSON object", shown(&other)),
        Err(error) => fail!(InvalidArgument, "{name} is not JSON: {error}"),
    }
}

/// A value for a message, cut where it is long.
pub fn shown(value: &Value) -> String {
    const LONGEST: usize = 80;
    let mut text = value.to_string();
    if text.len() > LONGEST {
        let cut = (0..=LONGEST).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(cut);
        text.push_str("...");
    }
    text
}

impl<'a> Object<'a> {
    pub fn new(name: &str, map: &'a Map<String, Value>) -> Object<'a> {
        Object { name: name.to_owned(), map }
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn expect<T>(&self, key: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let found = read(value);
        ensure!(found.is_some(), InvalidArgument, "{}: {key} is {}, must be {kind}", self.name, shown(value));
        Ok(found)
    }

    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.expect(key, "true or false", Value::as_bool)
    }

    pub fn count(&self, key: &str) -> Result<Option<u32>> {
        let read = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        self.expect(key, "a whole number of at least 0", read)
    }

    pub fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.expect(key, "a string", Value::as_str)
    }

    pub fn object(&self, key: &str) -> Result<Option<Object<'a>>> {
        let map = self.expect(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Object { name: format!("{}: {key}", self.name), map }))
    }

    pub fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        self.expect(key, "an array", Value::as_array)
    }

    /// An array of strings, none of them empty: an empty one would match every name, or none.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(array) = self.array(key)? else { return Ok(None) };
        let mut strings = Vec::with_capacity(array.len());
        for (index, value) in array.iter().enumerate() {
            match value.as_str() {
                Some("") => fail!(InvalidArgument, "{}: {key}[{index}] is empty", self.name),
                Some(string) => strings.push(string.to_owned()),
                None => fail!(InvalidArgument, "{}: {key}[{index}] is {}, must be a string", self.name, shown(value)),
            }
        }
        Ok(Some(strings))
    }

    /// The value of a table that a string names, in any case.
    pub fn named<T: Copy>(&self, key: &str, table: &[(&'static str, T)]) -> Result<Option<T>> {
        let Some(given) = self.string(key)? else { return Ok(None) };
        match table.iter().find(|(name, _)| name.eq_ignore_ascii_case(given)) {
            Some(&(_, value)) => Ok(Some(value)),
            None => {
                let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
                fail!(InvalidArgument, "{}: {key} is \"{given}\", known are {}", self.name, names.join(", "))
            }
        }
    }

    /// Fails for a key that is none of `known`.
    pub fn expect_known(&self, known: &[&str]) -> Result<()> {
        match self.map.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                fail!(InvalidArgument, "{}: {key} is not a known key, known are {}", self.name, known.join(", "))
            }
        }
    }

    /// Fails for a key that is none of `known` but within two edits of one: a typing error, which would be ignored.
    pub fn expect_no_typos(&self, known: &[&str]) -> Result<()> {
        for key in self.map.keys().filter(|key| !known.contains(&key.as_str())) {
            if let Some(meant) = known.iter().find(|other| strsim::levenshtein(key, other) <= 2) {
                fail!(InvalidArgument, "{}: {key} is not a known key; is {meant} meant?", self.name);
            }
        }
        Ok(())
    }
}
