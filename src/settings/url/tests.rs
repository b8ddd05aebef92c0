//! What a URL may say, and what comes of it.

use super::*;

fn try_to_read(url: &str) -> Result<Settings, String> {
    let mut settings = Settings::default();
    settings.read_url(url).map(|()| settings)
}

fn read(url: &str) -> Settings {
    try_to_read(url).expect("a good URL")
}

#[test]
fn a_url_means_what_it_means_in_redis_py() {
    let all = read("redis://al%40ice:p%2Fw@example.org:7000/3?socket_timeout=0.5");
    assert_eq!(all.place, Place::Server(Address::Tcp("example.org".into(), 7000)));
    assert_eq!((all.db, all.username.as_deref()), (3, Some("al@ice")));
    assert_eq!(all.password.as_deref(), Some("p/w"));
    assert_eq!(all.socket_timeout, Duration::from_millis(500));
    assert_eq!(read("redis://").place, Place::Server(Address::Tcp("localhost".into(), 6379)));
    assert_eq!(read("valkey://[::1]:1").place, Place::Server(Address::Tcp("::1".into(), 1)));
    assert_eq!(read("redis://h/1?db=2").db, 2);
    assert_eq!(read("redis://:pw@h").username, None);
    let unix = read("unix://u:pw@/run/my%20redis.sock?db=4");
    assert_eq!(unix.place, Place::Server(Address::Unix("/run/my redis.sock".into())));
    assert_eq!((unix.db, unix.username.as_deref()), (4, Some("u")));
}

#[test]
fn the_scheme_says_whether_to_use_tls_and_parameters_say_how() {
    let tls = |url: &str| read(url).tls;
    assert!(tls("redis://h").is_none() && tls("unix:///s").is_none());
    let plain = tls("rediss://h").expect("TLS");
    assert!(plain.verify && plain.check_hostname && !plain.only_tls13);
    assert!(plain == Tls::default() && tls("valkeys://h") == Some(plain));
    let all = tls(
        "rediss://h?ssl_ca_certs=/c%20a&ssl_certfile=/cert&ssl_keyfile=/key&ssl_cert_reqs=none\
         &ssl_check_hostname=False&ssl_min_version=772",
    );
    let all = all.expect("TLS");
    assert_eq!(all.ca_certs, Some("/c a".into()));
    assert_eq!((all.certfile, all.keyfile), (Some("/cert".into()), Some("/key".into())));
    assert!(!all.verify && !all.check_hostname && all.only_tls13);
    let settings = read("rediss://u:pw@h:7000/3");
    assert_eq!(settings.to_string(), "rediss://u:***@h:7000/3");
}

#[test]
fn what_cannot_be_meant_is_an_error_that_says_so() {
    for (url, words) in [
        ("localhost:6379", "scheme"),
        ("http://localhost", "scheme"),
        ("redis://h/one", "database in the path"),
        ("redis://h?db=-1", "db must be a number"),
        ("redis://h?socket_timeout=0", "socket_timeout must be more than 0"),
        ("redis://h?sockettimeout=1", "unknown parameter \"sockettimeout\""),
        ("redis://h?timeout=1e-9", "timeout must be between 0.001 s and a year"),
        ("redis://h?timeout=nan", "timeout must be more than 0 s"),
        ("redis://h:0", "port"),
        ("redis://h?ssl_ca_certs=/ca", "ssl_ca_certs needs rediss://"),
        ("rediss://h?ssl_ca_cert=/ca", "unknown parameter \"ssl_ca_cert\""),
        ("rediss://h?ssl_ciphers=x", "ssl_ciphers is not supported"),
        ("rediss://h?ssl_cert_reqs=no", "ssl_cert_reqs must be required, optional or none"),
        ("rediss://h?ssl_check_hostname=", "ssl_check_hostname must be true or false"),
        ("rediss://h?ssl_min_version=1.3", "ssl_min_version must be a number"),
        ("rediss://h?ssl_keyfile=/key", "ssl_keyfile needs ssl_certfile"),
        ("unix://", "names no socket"),
        ("unix://redis.sock", "no host"),
        ("", "not a URL"),
    ] {
        let error = try_to_read(url).expect_err(url);
        assert!(error.contains(words), "{url}: {error}");
    }
}

fn tcp(host: &str, port: u16) -> Address {
    Address::Tcp(host.to_owned(), port)
}

#[test]
fn one_of_sentinels_says_who_they_are_and_which_service_they_watch() {
    let url = "redis+sentinel://u:p%40@one:7000,two,[::1]:7002,[fe80::1]/my%2Fmaster/3";
    let all = read(&format!("{url}?sentinel_username=s&sentinel_password=q+%26&timeout=3"));
    let Place::Sentinel(service) = &all.place else { panic!("{all}") };
    assert_eq!(service.name, "my/master");
    let sentinels = [tcp("one", 7000), tcp("two", 26379), tcp("::1", 7002), tcp("fe80::1", 26379)];
    assert_eq!(service.sentinels, sentinels);
    assert_eq!(
        (all.db, all.username.as_deref(), all.password.as_deref()),
        (3, Some("u"), Some("p@"))
    );
    assert_eq!(service.username.as_deref(), Some("s"));
    assert_eq!(service.password.as_deref(), Some("q &"));
    assert!(all.tls.is_none() && service.tls.is_none());
    assert_eq!(all.timeout, Duration::from_secs(3));
    assert_eq!(read("valkey+sentinel://h/m?db=2").db, 2);
    assert_eq!(read("valkey+sentinel://h/m/1?db=2").db, 2);
}

#[test]
fn one_of_sentinels_with_tls_means_both_them_and_the_servers() {
    for scheme in ["rediss", "valkeys", "VALKEYS"] {
        let all = read(&format!("{scheme}+sentinel://h/m?ssl_ca_certs=/ca"));
        let Place::Sentinel(service) = &all.place else { panic!("{all}") };
        let tls = all.tls.as_ref().expect("TLS");
        assert_eq!(tls.ca_certs, Some("/ca".into()));
        assert!(service.tls.as_ref() == Some(tls));
    }
}

#[test]
fn one_of_a_cluster_names_some_of_its_nodes() {
    let all = read("redis+cluster://u:p@one:7000,two,[::1]/?socket_timeout=2");
    let nodes = [tcp("one", 7000), tcp("two", 6379), tcp("::1", 6379)];
    assert_eq!(all.place, Place::Cluster(nodes.into()));
    assert_eq!((all.db, all.password.as_deref()), (0, Some("p")));
    assert_eq!(all.socket_timeout, Duration::from_secs(2));
    assert_eq!(read("valkey+cluster://h/2").db, 2);
    assert!(read("valkeys+cluster://h").tls.is_some());
    assert_eq!(read("redis+cluster://").place, Place::Cluster([tcp("localhost", 6379)].into()));
}

#[test]
fn what_is_read_from_it_is_a_url_again_that_leads_to_the_same_place() {
    for (url, shown) in [
        ("redis://", "redis://localhost:6379/0"),
        ("redis://:7000", "redis://localhost:7000/0"),
        ("VALKEY://H:/1", "redis://H:6379/1"),
        ("redis://al%40i%2fce@h?db=2", "redis://al%40i%2Fce@h:6379/2"),
        ("redis://[0:0::0:1]", "redis://[::1]:6379/0"),
        ("unix://u:p@/a%3fb/../c d", "unix://u:***@/a%3Fb/../c%20d?db=0"),
        (
            "rediss+sentinel://:p@one,two:1/my%2Fmaster",
            "rediss+sentinel://:***@one:26379,two:1/my%2Fmaster/0",
        ),
        ("valkey+cluster://[::1],h/1", "redis+cluster://[::1]:6379,h:6379/1"),
        (" redis://h\n", "redis://h:6379/0"),
        ("redis://:@h?username=&password=", "redis://h:6379/0"),
    ] {
        let settings = read(url);
        assert_eq!(settings.to_string(), shown);
        let again = read(shown);
        assert!(again.place == settings.place, "{url}");
        assert_eq!((again.db, again.username), (settings.db, settings.username));
    }
}

#[test]
fn a_password_is_never_shown() {
    for url in [
        "redis://u:sesame@h/0",
        "redis://:sesame@h",
        "redis://u:se@same@h",
        "unix://u:sesame@/x",
        "redis://h?password=sesame",
        "redis+sentinel://u:sesame@h,h/m?sentinel_password=sesame",
        "redis+cluster://u:sesame@h,h",
    ] {
        let settings = read(url);
        assert!(!format!("{settings} {settings:?}").contains("same"), "{url}");
    }
}

#[test]
fn a_password_is_in_no_error_also_not_one_that_was_not_escaped() {
    for url in [
        "redis://u:sesame@h:port/",
        "u:sesame@redis://h",
        "redis://h?db=1?password=sesame",
        "redis://h?db=1;password=sesame",
        "redis://h?password:sesame",
        "rediss://h?ssl_check_hostname=no?password=sesame",
        "redis://u:sesame/x@h",
        "redis://u:1/sesame@h",
        "redis://u:1/sesame@h/0",
        "redis://u:a?sesame@h",
        "redis://u:a?db=sesame@h",
        "rediss://u:a?ssl_min_version=sesame@h",
        "redis://u:a#sesame@h",
        "redis://u:sesame%ff@h",
        "unix://u:/sesame@/x?bd=1",
        "unix://u:sesame/x",
        "redis+sentinel://u:sesame@,/m",
        "redis+sentinel://u:1/sesame@h/m",
        "redis+cluster://u:sesame/@h",
    ] {
        let error = try_to_read(url).expect_err(url);
        assert!(!error.contains("sesame"), "{url}: {error}");
    }
}
