/* The limit: what a C client gets out of the broker. Publisher confirms, mandatory, persistent messages, one connection,
 * one channel, at most WINDOW unconfirmed. Speaks the suite's protocol: ready, go, one JSON line, until stdin ends.
 *
 *     RELMSG_AMQP_URL=amqp://... publisher QUEUE COUNT WINDOW BODY_BYTES
 */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void fail(const char *what) {
    fprintf(stderr, "publisher: %s\n", what);
    exit(1);
}

static void succeed(amqp_rpc_reply_t reply, const char *what) {
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) fail(what);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void wait_for_go(void) {
    char line[16];
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin) || strcmp(line, "go\n")) exit(0);
}

/* Read one ack and give back how many it confirms. Acks may come out of order, so each tag is counted once. */
static uint64_t confirmed(amqp_connection_state_t connection, char *open, uint64_t *lowest) {
    amqp_frame_t frame;
    uint64_t found = 0;
    if (amqp_simple_wait_frame(connection, &frame) != AMQP_STATUS_OK) fail("the connection was lost");
    if (frame.frame_type != AMQP_FRAME_METHOD) fail("a frame that is no method: a message came back");
    if (frame.payload.method.id != AMQP_BASIC_ACK_METHOD) fail("no ack: refused, returned or closed");
    amqp_basic_ack_t *ack = frame.payload.method.decoded;
    for (uint64_t tag = ack->multiple ? *lowest : ack->delivery_tag; tag <= ack->delivery_tag; tag++) {
        found += open[tag];
        open[tag] = 0;
    }
    if (ack->multiple && ack->delivery_tag >= *lowest) *lowest = ack->delivery_tag + 1;
    amqp_maybe_release_buffers(connection);
    return found;
}

int main(int argc, char **argv) {
    if (argc != 5) fail("usage: publisher QUEUE COUNT WINDOW BODY_BYTES");
    const char *queue = argv[1];
    uint64_t count = strtoull(argv[2], NULL, 10), window = strtoull(argv[3], NULL, 10);
    size_t size = strtoull(argv[4], NULL, 10);

    char *url = getenv("RELMSG_AMQP_URL");
    struct amqp_connection_info info;
    if (!url || amqp_parse_url(strdup(url), &info) != AMQP_STATUS_OK) fail("RELMSG_AMQP_URL is no AMQP URL");
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    if (!socket || amqp_socket_open(socket, info.host, info.port)) fail("no connection");
    const char *vhost = info.vhost && *info.vhost ? info.vhost : "/";
    succeed(amqp_login(connection, vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, info.user, info.password), "login");
    amqp_channel_open(connection, 1);
    succeed(amqp_get_rpc_reply(connection), "channel");
    amqp_confirm_select(connection, 1);
    succeed(amqp_get_rpc_reply(connection), "confirms");

    char *body = malloc(size), *open = calloc(count + 1, 1), id[37];
    memset(body, 'x', size);
    amqp_bytes_t payload = {size, body};
    /* The same message as the suite's outbox rows become: type, app id and time cost the broker a quarter more. */
    amqp_table_entry_t entries[2] = {
        {amqp_cstring_bytes("region"), {.kind = AMQP_FIELD_KIND_UTF8, .value.bytes = amqp_cstring_bytes("eu-west-1")}},
        {amqp_cstring_bytes("tenant"), {.kind = AMQP_FIELD_KIND_UTF8, .value.bytes = amqp_cstring_bytes("acme")}},
    };
    amqp_basic_properties_t properties = {
        ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_HEADERS_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
                  AMQP_BASIC_PRIORITY_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG |
                  AMQP_BASIC_TYPE_FLAG | AMQP_BASIC_APP_ID_FLAG,
        .content_type = amqp_cstring_bytes("application/json"),
        .headers = {2, entries},
        .delivery_mode = 2,
        .priority = 0,
        .timestamp = (uint64_t)time(NULL),
        .type = amqp_cstring_bytes("order.placed"),
        .app_id = amqp_cstring_bytes("orders"),
    };

    wait_for_go();
    double began = now();
    uint64_t sent = 0, done = 0, lowest = 1;
    while (done < count) {
        while (sent < count && sent - done < window) {
            snprintf(id, sizeof id, "00000000-0000-4000-8000-%012llx", (unsigned long long)++sent);
            properties.message_id = amqp_cstring_bytes(id);
            open[sent] = 1;
            if (amqp_basic_publish(connection, 1, amqp_empty_bytes, amqp_cstring_bytes(queue), 1, 0, &properties, payload))
                fail("publish");
        }
        done += confirmed(connection, open, &lowest);
    }
    printf("{\"seconds\": %.6f}\n", now() - began);
    fflush(stdout);
    while (getchar() != EOF) {}
    return 0;
}
