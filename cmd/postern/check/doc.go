// Package check examines a set-up and returns findings, each with its remedy: about the
// configuration, certificates, listeners, the database, users, routes, upstreams and DNS.
// It changes nothing. An area that hangs or fails does not withhold the findings of others.
package check
