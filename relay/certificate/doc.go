// Package certificate holds what the listeners show in a TLS handshake: files that
// are read again when they change, certificates that a keeper gets (relay/acme), and a
// self-signed certificate for trying out or as a stand-in until the first is issued.
//
// Set chooses by the name that the client asks for (SNI). It answers from memory: a
// handshake waits for no file that is gone, no database and no authority. Trouble with
// any of them never takes away a certificate that is in memory.
//
// docs/certificates.md has the states of a certificate and what each failure does.
package certificate
