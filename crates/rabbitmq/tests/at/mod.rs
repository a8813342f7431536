//! The broker that a URL of the testbed names.

use postrider_rabbitmq::{Broker, Login};

pub(crate) fn broker(url: &str) -> Broker {
    let uri: lapin::uri::AMQPUri = url.parse().unwrap();
    Broker {
        host: uri.authority.host,
        port: uri.authority.port,
        login: Login::Password {
            username: uri.authority.userinfo.username,
            password: uri.authority.userinfo.password,
        },
        vhost: uri.vhost,
    }
}
