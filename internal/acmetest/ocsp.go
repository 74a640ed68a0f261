package acmetest

import (
	"io"
	"math/big"
	"net/http"
	"time"

	"golang.org/x/crypto/ocsp"
)

// ServeOCSP answers for the responder that Options.OCSP names: that a certificate is
// good, or that it is revoked.
func (c *CA) ServeOCSP(w http.ResponseWriter, r *http.Request, revoked func(serial *big.Int) bool) {
	octets, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	question, err := ocsp.ParseRequest(octets)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	now := time.Now()
	answer := ocsp.Response{Status: ocsp.Good, SerialNumber: question.SerialNumber, ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour)}
	if revoked(question.SerialNumber) {
		answer.Status, answer.RevokedAt, answer.RevocationReason = ocsp.Revoked, now.Add(-time.Minute), ocsp.Superseded
	}
	issuer := c.issuing.GetIntermediateCert(0).Cert
	signed, err := ocsp.CreateResponse(issuer, issuer, answer, c.issuing.GetIntermediateKey(0))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(signed)
}
