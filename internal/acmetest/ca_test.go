package acmetest

import (
	"encoding/base64"
	"testing"

	"github.com/letsencrypt/pebble/v2/core"
)

// TestKnowLeadingZero: DER puts a zero before a serial number whose first bit is set.
func TestKnowLeadingZero(t *testing.T) {
	t.Parallel()
	c := New(t, Options{})
	order := &core.Order{AccountID: "1", CertificateObject: &core.Certificate{ID: "80aa"}}
	if err := c.store.AddOrderByIssuedSerial(order); err != nil {
		t.Fatal(err)
	}
	c.know("key." + base64.RawURLEncoding.EncodeToString([]byte{0, 0x80, 0xaa}))
	if known, err := c.store.GetOrderByIssuedSerial("0080aa"); err != nil || known.AccountID != "1" {
		t.Errorf("%+v, %v", known, err)
	}
}
