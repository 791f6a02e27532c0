// Requests to the server this page came from, and what can go wrong with them.

import { recall, remember } from "./store.js";

const TOKEN = "token";
// Where a server that is full does not say when to ask again.
const RETRY_S = 2;

/** The server answered, and said no. */
export class RefusedError extends Error {
  constructor(status, kind, message, retryAfterS) {
    super(message);
    this.status = status;
    this.kind = kind;
    this.retryAfterS = retryAfterS;
  }
}

/** No answer came. */
export class UnreachableError extends Error {}

let token = recall(TOKEN, "tab");
let asking = null;
// Shows the dialog that asks for the token; set by the page.
let askForToken = async () => null;

/** Say how the token is asked for: `ask(wasWrong)` returns a promise of it, or of null. */
export function onTokenWanted(ask) {
  askForToken = ask;
}

/** Whether media must be fetched with a header, which elements cannot send by themselves. */
export function hasToken() {
  return token !== null;
}

/** Return a path of the server as an address; the page may be served below a prefix. */
export function addressAt(path) {
  return new URL(`.${path}`, new URL(".", document.baseURI)).href;
}

/** Send a request and return the response; asks for a token where one is wanted. */
export async function send(path, options = {}) {
  const shown = token;
  const response = await reach(path, options);
  if (response.ok) return response;
  if (response.status === 401 && (await renewToken(shown))) return send(path, options);
  throw await refusal(response);
}

/** Send a request and return the JSON of its answer. */
export async function sendForJson(path, options = {}) {
  const response = await send(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new UnreachableError("The answer broke off.");
  }
}

async function reach(path, options) {
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
  try {
    return await fetch(addressAt(path), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new UnreachableError("No answer came from the server.");
  }
}

/** Return whether there is another token than the one that was refused. */
async function renewToken(refused) {
  if (token !== refused) return token !== null;
  asking ??= askForToken(refused !== null).finally(() => (asking = null));
  const given = await asking;
  if (!given) return false;
  token = given;
  remember(TOKEN, given, "tab");
  return true;
}

async function refusal(response) {
  const { message, type } = await response
    .json()
    .then((body) => body.error ?? {})
    .catch(() => ({}));
  const wait = Number(response.headers.get("Retry-After"));
  return new RefusedError(
    response.status,
    type ?? "internal",
    message ?? `The server answered with status ${response.status}.`,
    wait > 0 ? wait : RETRY_S,
  );
}

/** Return whether the server says that it is ready; null where it says nothing. */
export async function isReady() {
  try {
    return (await fetch(addressAt("/readyz"))).ok;
  } catch {
    return null;
  }
}
