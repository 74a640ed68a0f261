// Package receiver judges mail of ours as the server does that receives it: SPF (RFC 7208), DKIM by
// the keys that sign (RFC 6376), DMARC (RFC 7489) and the name of the address that it comes from
// (RFC 8601 section 3). It asks the DNS, and says which record would help.
package receiver
