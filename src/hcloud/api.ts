/** The little of the Hetzner Cloud API that the plugin doesn't do: placement, and looking for what is left. */
import { setTimeout as delay } from "node:timers/promises";
import * as z from "zod";
import { oneLine } from "../machineText.ts";
import { ownValue } from "../record.ts";

/** Address and token. */
export interface HcloudAccess {
  readonly token: string;
  /** Default: Hetzner's own. */
  readonly endpoint?: string;
}

/** Where the API is. */
export const hcloudEndpoint = "https://api.hetzner.cloud/v1";

/** What the API refused, by its own code: https://docs.hetzner.cloud/reference/cloud#errors. */
export class HcloudError extends Error {
  override readonly name = "HcloudError";
  readonly code: string;

  constructor(code: string, message: string) {
    super(oneLine(message, 1000));
    this.code = code;
  }
}

/** Codes and answers after which the same request may succeed. */
const passing = new Set(["rate_limit_exceeded", "conflict", "locked", "timeout", "service_error", "maintenance"]);

const errorBody = z.object({ error: z.object({ code: z.string(), message: z.string() }) });
const actionBody = z.object({
  action: z.object({
    id: z.number(),
    status: z.enum(["running", "success", "error"]),
    error: z.object({ code: z.string(), message: z.string() }).nullish(),
  }),
});
const pageBody = z.object({
  meta: z.object({ pagination: z.object({ next_page: z.number().nullable() }) }).optional(),
});

/** A client. Every call is retried with growing pauses while that may help, for at most `patience`. */
export class HcloudApi {
  readonly #access: HcloudAccess;
  readonly #patience: number;

  /** @param patience Milliseconds. Default: two minutes. */
  constructor(access: HcloudAccess, patience = 120_000) {
    this.#access = access;
    this.#patience = patience;
  }

  /**
   * One request.
   *
   * @param path With a leading slash, below the endpoint.
   * @throws HcloudError with the API's code, or `unreachable`.
   */
  async request(method: "GET" | "POST" | "PUT" | "DELETE", path: string, body?: unknown): Promise<unknown> {
    const deadline = Date.now() + this.#patience;
    for (let pause = 250; ; pause = Math.min(pause * 2, 15_000)) {
      try {
        return await this.#once(method, path, body);
      } catch (error) {
        if (!(error instanceof HcloudError)) throw error;
        const again = passing.has(error.code) || error.code === "unreachable";
        if (!again || Date.now() + pause > deadline) throw error;
      }
      await delay(pause * (0.5 + Math.random() / 2));
    }
  }

  /** All pages of a list. */
  async list<T extends z.ZodType>(path: string, key: string, item: T): Promise<z.infer<T>[]> {
    const found: z.infer<T>[] = [];
    for (let page: number | null = 1; page !== null;) {
      const answer = await this.request("GET", `${path}${path.includes("?") ? "&" : "?"}page=${page}&per_page=50`);
      const whole = understand(z.record(z.string(), z.unknown()), answer, path);
      found.push(...understand(z.array(item), ownValue(whole, key), path));
      page = understand(pageBody, answer, path).meta?.pagination.next_page ?? null;
    }
    return found;
  }

  /**
   * Waits until the action that a request has started is done.
   *
   * @param limit Milliseconds. Default: two hours.
   * @throws HcloudError as `request`, where the action failed, or with the code `timeout`.
   */
  async finish(answer: unknown, limit = 7_200_000): Promise<void> {
    const started = actionBody.safeParse(answer);
    if (!started.success) return;
    let { action } = started.data;
    const deadline = Date.now() + limit;
    for (let pause = 100; action.status === "running"; pause = Math.min(pause * 1.5, 3000)) {
      if (Date.now() > deadline)
        throw new HcloudError(
          "timeout",
          `action ${action.id} of the Hetzner Cloud API did not end within ${limit / 60_000} minutes`,
        );
      await delay(pause);
      const path = `/actions/${action.id}`;
      action = understand(actionBody, await this.request("GET", path), path).action;
    }
    if (action.status === "error") {
      throw new HcloudError(action.error?.code ?? "action_failed", action.error?.message ?? "the action failed");
    }
  }

  async #once(method: string, path: string, body: unknown): Promise<unknown> {
    let response: Response;
    try {
      response = await fetch(`${this.#access.endpoint ?? hcloudEndpoint}${path}`, {
        method,
        headers: { authorization: `Bearer ${this.#access.token}`, "content-type": "application/json" },
        ...(body !== undefined && { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(30_000),
      });
    } catch (error) {
      const cause = error instanceof Error && error.cause instanceof Error ? error.cause.message : String(error);
      throw new HcloudError("unreachable", `the Hetzner Cloud API can't be reached: ${cause}`);
    }
    const text = await response.text();
    const answer = parse(text);
    if (response.ok) return answer;
    const said = errorBody.safeParse(answer);
    if (response.status >= 500 && !said.success) {
      throw new HcloudError("unreachable", `the Hetzner Cloud API answers with status ${response.status}`);
    }
    if (response.status === 401) {
      throw new HcloudError(
        "unauthorized",
        "the Hetzner Cloud API refuses the token; set hcloud:token (or HCLOUD_TOKEN)",
      );
    }
    const { code, message } = said.success
      ? said.data.error
      : { code: `status_${response.status}`, message: text.slice(0, 200) };
    throw new HcloudError(code, message);
  }
}

/**
 * What an answer says.
 *
 * @param path that was asked.
 * @throws HcloudError with the code `unexpected_answer`, for instance for the page of a proxy.
 */
export function understand<T extends z.ZodType>(schema: T, answer: unknown, path: string): z.infer<T> {
  const parsed = schema.safeParse(answer);
  if (parsed.success) return parsed.data;
  const where = parsed.error.issues[0]?.path.join(".") ?? "";
  throw new HcloudError(
    "unexpected_answer",
    `the Hetzner Cloud API answers ${path.replace(/\?.*/, "")} otherwise than expected${where === "" ? "" : ` (${where})`}; ` +
      "look whether hcloud:endpoint or a proxy answers in its place, or take a newer version of this project",
  );
}

function parse(text: string): unknown {
  try {
    return text === "" ? {} : (JSON.parse(text) as unknown);
  } catch {
    return undefined;
  }
}
