// Package message does header surgery on bytes: it finds fields, counts Received,
// removes what must not be relayed and prepends what RFC 6409 asks for. It builds no MIME
// tree and never rewrites what it does not have to.
package message
