# docker build --build-arg VERSION=$(git describe --tags --always) -t postern .
# or "make image". docs/install.md says how to run it.
FROM --platform=$BUILDPLATFORM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
ARG COMMIT=
ARG TARGETARCH
RUN CGO_ENABLED=0 GOARCH=$TARGETARCH go build -trimpath -buildvcs=false \
	-ldflags "-s -w ${VERSION:+-X main.version=$VERSION} ${COMMIT:+-X main.commit=$COMMIT}" \
	-o /out/usr/bin/postern ./cmd/postern
# All that there is beside the program: an account, authorities to trust, folders.
RUN install -d /out/etc/postern /out/etc/ssl/certs /out/usr/share/doc/postern \
	&& install -d -m 1777 /out/tmp \
	&& install -d -m 0700 /state \
	&& echo 'postern:x:10001:10001:Postern:/var/lib/postern:/sbin/nologin' >/out/etc/passwd \
	&& echo 'postern:x:10001:' >/out/etc/group \
	&& cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ \
	&& go run ./internal/tools/sbom -version "$VERSION" -out /out/usr/share/doc/postern /out/usr/bin/postern

FROM scratch
ARG VERSION=
ARG COMMIT=
LABEL org.opencontainers.image.title="postern" \
	org.opencontainers.image.description="Authenticated mail submission relay on PostgreSQL" \
	org.opencontainers.image.licenses="Apache-2.0" \
	org.opencontainers.image.version=$VERSION \
	org.opencontainers.image.revision=$COMMIT
COPY --from=build /out /
COPY --from=build --chown=10001:10001 /state /var/lib/postern
USER 10001:10001
WORKDIR /var/lib/postern
# The key that seals secrets in the database: keep /var/lib/postern on a volume.
ENV POSTERN_SECRET_KEY_FILE=/var/lib/postern/secret.key
EXPOSE 587 465
# SIGTERM drains: give it longer than drain_time before the engine kills.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s CMD ["/usr/bin/postern", "healthcheck"]
ENTRYPOINT ["/usr/bin/postern"]
CMD ["serve"]
