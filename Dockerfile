# docker build --build-arg VERSION=$(git describe --tags --always) -t postern .
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false \
	-ldflags "-s -w ${VERSION:+-X main.version=$VERSION}" -o /out/postern ./cmd/postern

FROM alpine:3.22
RUN apk add --no-cache ca-certificates \
	&& adduser -D -H -u 10001 postern \
	&& install -d -o postern -g postern -m 0700 /var/lib/postern
COPY --from=build /out/postern /usr/local/bin/postern
USER postern
WORKDIR /var/lib/postern
# The key that seals upstream passwords: keep /var/lib/postern on a volume.
ENV POSTERN_SECRET_KEY_FILE=/var/lib/postern/secret.key
EXPOSE 587 465
ENTRYPOINT ["postern"]
CMD ["serve", "--config", "/etc/postern/postern.toml"]
