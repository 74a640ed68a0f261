// Package check looks at a set-up and returns findings, each with what to do: about the
// configuration, certificates, listeners, the database, accounts, routes, upstreams and DNS.
// It asks, and changes nothing; an area that hangs or fails keeps nothing of the others back.
package check
