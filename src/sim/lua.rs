//! Runs the real scripts against the model's keys.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use mlua::{Function, Lua, LuaOptions, StdLib, Value, Variadic};

use super::store::{Reply, Store};

struct Engine {
    lua: Lua,
    /// By hash, compiled.
    scripts: HashMap<String, Function>,
    hashes: HashMap<Vec<u8>, String>,
    /// The keys of whichever server runs a script.
    store: Rc<RefCell<Store>>,
    /// The error that ended the script at hand.
    error: Rc<RefCell<Option<String>>>,
}

thread_local! {
    static ENGINE: RefCell<Engine> = RefCell::new(Engine::new().expect("Lua"));
}

/// The name under which a server remembers a script.
pub fn hash(text: &[u8]) -> String {
    ENGINE.with_borrow_mut(|engine| {
        if let Some(hash) = engine.hashes.get(text) {
            return hash.clone();
        }
        let source = std::str::from_utf8(text).expect("a script");
        let hash = redis::Script::new(source).get_hash().to_owned();
        let script = engine.lua.load(source).into_function().expect("a script that compiles");
        engine.scripts.insert(hash.clone(), script);
        engine.hashes.insert(text.to_vec(), hash.clone());
        hash
    })
}

/// Runs a script that has been hashed before.
pub fn run(store: &mut Store, hash: &str, keys: &[Vec<u8>], args: &[Vec<u8>]) -> Reply {
    ENGINE.with_borrow_mut(|engine| {
        store.writes = 0;
        std::mem::swap(&mut *engine.store.borrow_mut(), store);
        let reply = engine.run(hash, keys, args).expect("Lua");
        std::mem::swap(&mut *engine.store.borrow_mut(), store);
        reply
    })
}

impl Engine {
    fn new() -> mlua::Result<Self> {
        let libraries = StdLib::STRING | StdLib::TABLE | StdLib::MATH;
        let lua = Lua::new_with(libraries, LuaOptions::default())?;
        let (store, error) = <(Rc<RefCell<Store>>, Rc<RefCell<Option<String>>>)>::default();
        let (theirs, raised) = (Rc::clone(&store), Rc::clone(&error));
        let call = lua.create_function(move |lua, args: Variadic<Value>| {
            match theirs.borrow_mut().call(&words(&args)?) {
                Reply::Error(error) => {
                    *raised.borrow_mut() = Some(error.clone());
                    Err(mlua::Error::RuntimeError(error))
                }
                reply => to_lua(lua, reply),
            }
        })?;
        let theirs = Rc::clone(&store);
        let pcall = lua.create_function(move |lua, args: Variadic<Value>| {
            let reply = theirs.borrow_mut().call(&words(&args)?);
            to_lua(lua, reply)
        })?;
        let redis = lua.create_table()?;
        redis.set("call", call)?;
        redis.set("pcall", pcall)?;
        lua.globals().set("redis", redis)?;
        Ok(Self { lua, scripts: HashMap::new(), hashes: HashMap::new(), store, error })
    }

    fn run(&self, hash: &str, keys: &[Vec<u8>], args: &[Vec<u8>]) -> mlua::Result<Reply> {
        for (name, words) in [("KEYS", keys), ("ARGV", args)] {
            let table = self.lua.create_table_with_capacity(words.len(), 0)?;
            for (word, index) in words.iter().zip(1..) {
                table.raw_set(index, self.lua.create_string(word)?)?;
            }
            self.lua.globals().raw_set(name, table)?;
        }
        let value: mlua::Result<Value> = self.scripts[hash].call(());
        match (self.error.take(), value) {
            (Some(error), _) => Ok(Reply::Error(error)),
            (None, Ok(Value::String(text))) => Ok(Reply::Text(text.as_bytes().to_vec())),
            (None, Ok(value)) => panic!("a script returned {value:?}"),
            (None, Err(error)) => Err(error),
        }
    }
}

fn words(args: &[Value]) -> mlua::Result<Vec<Vec<u8>>> {
    args.iter()
        .map(|arg| match arg {
            Value::String(text) => Ok(text.as_bytes().to_vec()),
            Value::Integer(number) => Ok(number.to_string().into_bytes()),
            // As `%.17g` says them, as long as they are whole and not huge.
            Value::Number(number) if number.fract() == 0.0 && number.abs() < 1e17 => {
                Ok(format!("{number:.0}").into_bytes())
            }
            other => Err(mlua::Error::RuntimeError(format!("an argument is {other:?}"))),
        })
        .collect()
}

fn to_lua(lua: &Lua, reply: Reply) -> mlua::Result<Value> {
    Ok(match reply {
        Reply::Nil => Value::Boolean(false),
        #[allow(clippy::cast_precision_loss)] // As Lua has it.
        Reply::Int(number) => Value::Number(number as f64),
        Reply::Text(text) => Value::String(lua.create_string(text)?),
        Reply::List(list) => {
            let table = lua.create_table_with_capacity(list.len(), 0)?;
            for (item, index) in list.into_iter().zip(1..) {
                table.raw_set(index, to_lua(lua, item)?)?;
            }
            Value::Table(table)
        }
        Reply::Status(status) => said(lua, "ok", status)?,
        Reply::Error(error) => said(lua, "err", &error)?,
    })
}

fn said(lua: &Lua, field: &str, word: &str) -> mlua::Result<Value> {
    let table = lua.create_table()?;
    table.raw_set(field, word)?;
    Ok(Value::Table(table))
}
