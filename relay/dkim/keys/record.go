package keys

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// matches is nil if the TXT records of a name are the key's record, as a verifier takes them (RFC
// 6376 section 3.6); else it is what is wrong with them.
func (k *Key) matches(texts []string) error {
	switch len(texts) {
	case 0:
		return errors.New("no record")
	case 1:
	default:
		return fmt.Errorf("%d TXT records, where one belongs", len(texts))
	}
	tags := map[string]string{"k": "rsa", "v": "DKIM1"}
	for tag := range strings.SplitSeq(texts[0], ";") {
		name, value, _ := strings.Cut(tag, "=")
		tags[strings.TrimSpace(name)] = strings.Join(strings.Fields(value), "")
	}
	lists := func(tag, value string) bool {
		return tags[tag] == "" || slices.Contains(strings.Split(tags[tag], ":"), value)
	}
	public, err := base64.StdEncoding.DecodeString(tags["p"])
	switch {
	case tags["v"] != "DKIM1":
		return fmt.Errorf("v=%s, where v=DKIM1 belongs", tags["v"])
	case tags["k"] != string(k.Algorithm):
		return fmt.Errorf("k=%s, where k=%s belongs", tags["k"], k.Algorithm)
	case tags["p"] == "":
		return errors.New("p= is empty, which revokes the key")
	case err != nil:
		return errors.New("the record is cut off (p= is not whole)")
	case !bytes.Equal(public, k.Public):
		return errors.New("the record has another key")
	case !lists("h", "sha256"):
		return fmt.Errorf("h=%s forbids sha256", tags["h"])
	case !lists("s", "email") && !lists("s", "*"):
		return fmt.Errorf("s=%s forbids mail", tags["s"])
	}
	return nil
}
