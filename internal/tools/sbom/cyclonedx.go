package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"runtime/debug"
	"strings"
)

// The part of CycloneDX 1.5 that is filled in (https://cyclonedx.org/docs/1.5/json/).
type document struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Serial       string       `json:"serialNumber"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type     string    `json:"type"`
	Ref      string    `json:"bom-ref"`
	Name     string    `json:"name"`
	Version  string    `json:"version,omitempty"`
	PURL     string    `json:"purl,omitempty"`
	Hashes   []hash    `json:"hashes,omitempty"`
	Licenses []license `json:"licenses,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type license struct {
	License struct {
		ID string `json:"id"`
	} `json:"license"`
}

type dependency struct {
	Ref     string   `json:"ref"`
	Depends []string `json:"dependsOn"`
}

// cycloneDX describes the program. The same program gives the same document: it
// has no time, and its serial number is made from what it says.
func cycloneDX(info *debug.BuildInfo, version string, modules []module) document {
	program := component{Type: "application", Ref: "pkg:golang/" + info.Main.Path, Name: info.Main.Path, Version: version}
	program.Licenses = licensed("Apache-2.0")
	doc := document{Format: "CycloneDX", Spec: "1.5", Version: 1, Metadata: metadata{program}}
	everything := dependency{Ref: program.Ref}
	sum := sha256.New()
	fmt.Fprintln(sum, info.Main.Path, version)
	for _, m := range modules {
		c := component{
			Type: "library", Ref: m.purl(), Name: m.path, Version: m.version, PURL: m.purl(),
			Licenses: licensed(m.licence),
		}
		if h, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.sum, "h1:")); err == nil && len(h) == sha256.Size {
			c.Hashes = []hash{{"SHA-256", hex.EncodeToString(h)}}
		}
		doc.Components = append(doc.Components, c)
		everything.Depends = append(everything.Depends, c.Ref)
		fmt.Fprintln(sum, m.path, m.version, m.sum)
	}
	doc.Dependencies = []dependency{everything}
	doc.Serial = serial(sum.Sum(nil))
	return doc
}

// serial is a UUID of version 8, which leaves its content to its maker (RFC 9562, 5.8).
func serial(sum []byte) string {
	u := sum[:16]
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

func licensed(id string) []license {
	l := license{}
	l.License.ID = id
	return []license{l}
}
